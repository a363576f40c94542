# SPDX-License-Identifier: Apache-2.0
"""Exponential family: log-sum-exps along rows and columns, and the products with G = e^(S - p) + e^(S - q)."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.cpu_backend import bf16_exponential
from clipkit.engine.cpu_backend.compiled import compiled
from clipkit.engine.cpu_backend.passes import RunningSums, at, diagonal_columns, fp32_zeros, tile_of
from clipkit.engine.cpu_backend.products import bf16_kernel, products_of
from clipkit.engine.cpu_backend.tiles import over_tiles, whole


def log_sum_exps(x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.log_sum_exps`."""
    factor = float(scale)
    if factor > 0.0 and (kernel := bf16_kernel(x.dtype)):
        return bf16_exponential.log_sum_exps(x, y, factor, diagonal=diagonal, kernel=kernel)
    products = products_of(x, y)
    row, column = RunningSums.empty(len(x), x), RunningSums.empty(len(y), y)
    positive = None if diagonal is None else diagonal_columns(len(x), diagonal, x)

    def work(rows: slice, columns: slice, tile: Tensor) -> None:
        products.tile(rows, columns, tile)
        positives = (*at(rows, positive), columns.start, 0)
        compiled().tile_statistics(tile_of(tile, factor), *positives, *at(rows, *row), *at(columns, *column))

    over_tiles(whole(x, y), work, like=x)
    return row.log(), column.log()


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
    if kernel := bf16_kernel(x.dtype):
        # An offset of +inf makes its exponential vanish.
        absent = x.new_full((max(len(x), len(y)),), float("inf"), dtype=torch.float32)
        return bf16_exponential.exponential_products(
            x,
            y,
            float(scale),
            row_offset=absent[: len(x)] if row_offset is None else row_offset.contiguous(),
            column_offset=absent[: len(y)] if column_offset is None else column_offset.contiguous(),
            diagonal=diagonal,
            diagonal_weight=diagonal_weight,
            want_x=want_x,
            want_y=want_y,
            kernel=kernel,
        )
    products, factor = products_of(x, y), float(scale)
    positive, weight = diagonal_columns(len(x), diagonal, x), diagonal_weight.contiguous()
    row_offset = None if row_offset is None else row_offset.contiguous()
    column_offset = None if column_offset is None else column_offset.contiguous()
    g_y, gt_x = fp32_zeros(want_x, x), fp32_zeros(want_y, y)

    def work(rows: slice, columns: slice, tile: Tensor) -> None:
        products.tile(rows, columns, tile)
        positives = (*at(rows, positive), columns.start, *at(rows, weight))
        compiled().tile_gradient(tile_of(tile, factor), *positives, *at(rows, row_offset), *at(columns, column_offset))
        if g_y is not None:
            products.add_to_rows(tile, rows, columns, g_y)
        if gt_x is not None:
            products.add_to_columns(tile, rows, columns, gt_x)

    over_tiles(whole(x, y), work, like=x)
    return g_y, gt_x
