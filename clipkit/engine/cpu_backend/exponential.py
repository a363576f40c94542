# SPDX-License-Identifier: Apache-2.0
"""Exponential family: log-sum-exps along rows and columns, and the products with G = e^(S - p) + e^(S - q).

bf16 towers that the processor can multiply take a sweep of C++ (csrc/cpu/bf16_sweep.h): their products are so fast that
going through Python tile by tile would cost a quarter of the time (0.13 against 0.10 s at N = 4096, d = 512, one core).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.engine.cpu_backend.compiled import compiled
from clipkit.engine.cpu_backend.passes import RunningSums, at, diagonal_columns, fp32_zeros, tile_of
from clipkit.engine.cpu_backend.products import bf16_kernel, matrix_of, products_of, with_contiguous_rows
from clipkit.engine.cpu_backend.tiles import over_tiles, tile_in, whole
from clipkit.engine.workspace import Workspace


def log_sum_exps(
    x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None, workspace: Workspace | None = None
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.log_sum_exps`.

    Products of bf16 towers are not kept: AMX makes one again in 1.0 ns (d = 512, one core), to write it and read it
    takes 2.5. In fp32 a step takes 0.84 to 0.86 of its time with them (N = 2048 and 4096, d = 512).
    """
    (every_row, every_column), factor = whole(x, y), float(scale)
    row, column = RunningSums.empty(len(x), x), RunningSums.empty(len(y), y)
    positive = None if diagonal is None else diagonal_columns(len(x), diagonal, x)
    if kernel := bf16_kernel(x.dtype):
        x, y = with_contiguous_rows(x), with_contiguous_rows(y)
        sums = (*at(every_row, positive, *row), *at(every_column, *column))
        compiled().bf16_statistics(kernel, matrix_of(x), matrix_of(y), factor, *sums, torch.get_num_threads())
        return row.log(), column.log()
    products = products_of(x, y)
    kept = None if workspace is None else workspace.keep(len(x), len(y), x)

    def work(rows: slice, columns: slice, *buffers: Tensor) -> None:
        tile = buffers[0] if kept is None else tile_in(kept, rows, columns, len(y))
        products.tile(rows, columns, tile)
        positives = (*at(rows, positive), columns.start, 0)
        compiled().tile_statistics(tile_of(tile, factor), *positives, *at(rows, *row), *at(columns, *column))

    over_tiles((every_row, every_column), work, like=x, buffers=int(kept is None))
    return row.log(), column.log()


def anchor_statistics(x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.anchor_statistics`."""
    every_row, every_column = whole(x, y)
    factor = scale.expand(len(x)).contiguous()
    sums, moment = RunningSums.empty(len(x), x), x.new_zeros(len(x), dtype=torch.float32)
    positive = None if diagonal is None else diagonal_columns(len(x), diagonal, x)
    if kernel := bf16_kernel(x.dtype):
        x, y = with_contiguous_rows(x), with_contiguous_rows(y)
        lines = at(every_row, positive, factor, *sums, moment)
        compiled().bf16_anchors(kernel, matrix_of(x), matrix_of(y), *lines, torch.get_num_threads())
    else:
        products = products_of(x, y)

        def work(rows: slice, columns: slice, tile: Tensor) -> None:
            products.tile(rows, columns, tile)
            lines = (*at(rows, positive), columns.start, *at(rows, factor, *sums, moment))
            compiled().tile_anchors(tile_of(tile, 1.0), *lines)

        over_tiles((every_row, every_column), work, like=x)
    return sums.log(), moment.div_(sums.total).masked_fill_(sums.total == 0.0, 0.0)


class Term(NamedTuple):
    """One direction's part of G, e^(factor · product - offset): vectors of its lines, absent or contiguous."""

    offset: Tensor | None
    factor: Tensor | None

    @classmethod
    def of(cls, offset: Tensor | None, scale: Tensor | None, common: float) -> Term:
        """`scale` multiplies the common one; without it, there are no factors and the tile's scale serves."""
        return cls(
            None if offset is None else offset.contiguous(), None if scale is None else (scale * common).contiguous()
        )


def exponential_products(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    *,
    row_offset: Tensor | None,
    column_offset: Tensor | None,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    diagonal: int,
    diagonal_weight: Tensor,
    want_x: bool,
    want_y: bool,
    workspace: Workspace | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.exponential_products`."""
    (every_row, every_column), factor = whole(x, y), float(scale)
    positive, weight = diagonal_columns(len(x), diagonal, x), diagonal_weight.contiguous()
    of_rows, of_columns = Term.of(row_offset, row_scale, factor), Term.of(column_offset, column_scale, factor)
    g_y, gt_x = fp32_zeros(want_x, x), fp32_zeros(want_y, y)
    if kernel := bf16_kernel(x.dtype):
        x, y = with_contiguous_rows(x), with_contiguous_rows(y)
        arrays = (*at(every_row, positive, weight, *of_rows), *at(every_column, *of_columns))
        results = (*at(every_row, g_y), *at(every_column, gt_x))
        compiled().bf16_products(kernel, matrix_of(x), matrix_of(y), factor, *arrays, *results, torch.get_num_threads())
        return g_y, gt_x
    products = products_of(x, y)
    kept = None if workspace is None else workspace.take()

    def work(rows: slice, columns: slice, *buffers: Tensor) -> None:
        if kept is None:
            (tile,) = buffers
            products.tile(rows, columns, tile)
        else:
            tile = tile_in(kept, rows, columns, len(y))
        positives = (*at(rows, positive), columns.start, *at(rows, weight))
        compiled().tile_gradient(tile_of(tile, factor), *positives, *at(rows, *of_rows), *at(columns, *of_columns))
        if g_y is not None:
            products.add_to_rows(tile, rows, columns, g_y)
        if gt_x is not None:
            products.add_to_columns(tile, rows, columns, gt_x)

    over_tiles((every_row, every_column), work, like=x, buffers=int(kept is None))
    return g_y, gt_x
