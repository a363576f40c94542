# SPDX-License-Identifier: Apache-2.0
"""Sigmoid family: loss and gradients come out of one sweep, softplus and sigmoid from one exponential per logit.

Positives are a CSR list of columns; a diagonal is written as one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.cpu_backend.compiled import compiled
from clipkit.engine.cpu_backend.passes import at, diagonal_columns, fp32_zeros, tile_of
from clipkit.engine.cpu_backend.products import products_of
from clipkit.engine.cpu_backend.tiles import over_tiles, whole

Sums = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def sigmoid_sweep(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, *, diagonal: int, want_gradients: bool) -> Sums:
    """See `clipkit.engine.sweeps.sigmoid_sweep`."""
    offsets, indices = diagonal_columns(len(x) + 1, 0, x), diagonal_columns(len(x), diagonal, x)
    loss, g_y, gt_x, totals = _sweep(x, y, float(scale), bias.expand(len(y)), offsets, indices, want_gradients)
    return loss, g_y, gt_x, None if totals is None else totals.sum().float()


def labelled_sigmoid_sweep(
    x: Tensor, weight: Tensor, bias: Tensor, target_offsets: Tensor, target_indices: Tensor, *, want_gradients: bool
) -> Sums:
    """See `clipkit.engine.sweeps.labelled_sigmoid_sweep`. A label listed twice in a row counts once."""
    loss, g_w, gt_x, totals = _sweep(x, weight, 1.0, bias, target_offsets, target_indices, want_gradients)
    return loss, g_w, gt_x, None if totals is None else totals.float()


def _sweep(
    x: Tensor, y: Tensor, factor: float, bias: Tensor, offsets: Tensor, indices: Tensor, want_gradients: bool
) -> Sums:
    """(loss, G Y, Gᵀ X, sums of G down the columns in float64)."""
    products = products_of(x, y)
    bias = bias.to(torch.float32).contiguous()
    offsets, indices = (vector.to(torch.int64).contiguous() for vector in (offsets, indices))
    g_y, gt_x = fp32_zeros(want_gradients, x), fp32_zeros(want_gradients, y)
    totals = y.new_zeros(len(y), dtype=torch.float64) if want_gradients else None

    def work(rows: slice, columns: slice, tile: Tensor) -> float:
        products.tile(rows, columns, tile)
        targets = (*at(rows, offsets), indices.data_ptr(), columns.start)
        loss = compiled().tile_sigmoid(tile_of(tile, factor), *at(columns, bias), *targets, *at(columns, totals))
        if g_y is not None and gt_x is not None:
            products.add_to_rows(tile, rows, columns, g_y)
            products.add_to_columns(tile, rows, columns, gt_x)
        return float(loss)

    loss = sum(over_tiles(whole(x, y), work, like=x))
    return torch.tensor(loss, dtype=torch.float32, device=x.device), g_y, gt_x, totals
