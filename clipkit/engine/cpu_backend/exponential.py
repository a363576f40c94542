# SPDX-License-Identifier: Apache-2.0
"""Exponential family: log-sum-exps along rows and columns, and the products with G = e^(S - p) + e^(S - q)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from clipkit.engine import torch_backend
from clipkit.engine.cpu_backend.compiled import compiled
from clipkit.engine.cpu_backend.products import products_of
from clipkit.engine.cpu_backend.tiles import new_buffer, over_strips, tile_in, tiles
from clipkit.engine.torch_backend.tiles import positives


def log_sum_exps(x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.log_sum_exps`."""
    products, factor = products_of(x, y), float(scale)
    if not factor > 0.0:  # the positives' mask, -inf before the epilogue scales it, would not stay -inf
        return torch_backend.log_sum_exps(x, y, scale, diagonal=diagonal)
    row_lse, column_lse = (x.new_full((count,), -torch.inf, dtype=torch.float32) for count in (len(x), len(y)))
    buffer = new_buffer(x)
    for rows, columns in tiles(x, y):
        tile = tile_in(buffer, rows, columns)
        products.tile(rows, columns, tile)
        if diagonal is not None:
            positives(tile, rows, diagonal - columns.start).fill_(-torch.inf)
        strips = over_strips(tile, functools.partial(_strip_statistics, tile, factor))
        across = torch.cat([strip_rows for strip_rows, _ in strips])
        torch.logaddexp(row_lse[rows], across, out=row_lse[rows])
        for _, down in strips:
            torch.logaddexp(column_lse[columns], down, out=column_lse[columns])
    return row_lse, column_lse


def exponential_products(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    *,
    row_offset: Tensor | None,
    column_offset: Tensor | None,
    diagonal: int,
    diagonal_weight: Tensor,
    want_x: bool,
    want_y: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.exponential_products`."""
    products, factor = products_of(x, y), float(scale)
    # An offset of +inf makes its exponential vanish: the one-directional forms need no second epilogue.
    absent = x.new_full((max(len(x), len(y)),), torch.inf, dtype=torch.float32)
    row_offset = absent[: len(x)] if row_offset is None else row_offset.contiguous()
    column_offset = absent[: len(y)] if column_offset is None else column_offset.contiguous()
    g_y = x.new_zeros(x.shape, dtype=torch.float32) if want_x else None
    gt_x = y.new_zeros(y.shape, dtype=torch.float32) if want_y else None
    buffer = new_buffer(x)
    for rows, columns in tiles(x, y):
        tile = tile_in(buffer, rows, columns)
        products.tile(rows, columns, tile)
        over_strips(tile, functools.partial(_strip_gradient, tile, factor, row_offset[rows], column_offset[columns]))
        entries = positives(tile, rows, diagonal - columns.start)
        first = max(0, columns.start - diagonal - rows.start)
        entries.copy_(diagonal_weight[rows][first : first + entries.shape[0]])
        if g_y is not None:
            products.add_to_rows(tile, rows, columns, g_y)
        if gt_x is not None:
            products.add_to_columns(tile, rows, columns, gt_x)
    return g_y, gt_x


def _strip_statistics(tile: Tensor, factor: float, strip: slice) -> tuple[Tensor, Tensor]:
    part = tile[strip]
    rows, columns = part.shape
    row_offset, row_sum = part.new_empty(2, rows)
    column_offset, column_sum = part.new_empty(2, columns)
    outputs = [out.data_ptr() for out in (row_offset, row_sum, column_offset, column_sum)]
    compiled().clip_tile_statistics(part.data_ptr(), part.stride(0), rows, columns, factor, *outputs)
    return _lse(row_offset, row_sum), _lse(column_offset, column_sum)


def _lse(offset: Tensor, total: Tensor) -> Tensor:
    """log(total) + offset, and -inf for a line in which nothing was left to sum."""
    return torch.where(offset.isneginf(), offset, total.log_().add_(offset))


def _strip_gradient(tile: Tensor, factor: float, row_offset: Tensor, column_offset: Tensor, strip: slice) -> None:
    part = tile[strip]
    rows, columns = part.shape
    outside = columns  # the positives' weights are written afterwards, from their own formula
    offsets = (row_offset[strip].data_ptr(), column_offset.data_ptr())
    compiled().clip_tile_gradient(part.data_ptr(), part.stride(0), rows, columns, factor, *offsets, outside)
