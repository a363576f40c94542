# SPDX-License-Identifier: Apache-2.0
"""One tile of the softmax-weighted means of how S moves along given directions: the first sweep of a Hessian-vector
product of the CLIP loss.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .moves import tile_moves
from .tiles import exponential, lines, own_pairs, swizzled_tile, tile_products


@triton.jit(do_not_specialize=["diagonal"])
def tile_curvature_sums(
    x,
    y,
    scale,
    rows,
    columns,
    x_stride,
    y_stride,
    x_across,
    y_across,
    across_scale,
    x_down,
    y_down,
    down_scale,
    row_lse,
    column_lse,
    diagonal,
    row_sums,
    column_sums,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    SEPARATE: tl.constexpr,
):
    """One program, one tile: sum_j P_ij R_ij to row_sums[column tile, i] and sum_i Q_ij R_ij to
    column_sums[row tile, j], for the row and column softmax P and Q of S and R of tile_moves along (x_across, y_across)
    for the rows and, if SEPARATE, along (x_down, y_down) for the columns. Pairs j == i + diagonal are left out.
    Directions are [rows, WIDTH] and [columns, WIDTH] without gaps; their scales are [1] fp32.
    """
    row_tile, column_tile = swizzled_tile(tl.program_id(0), rows, columns, BLOCK_M, BLOCK_N, GROUP)
    i, j = lines(row_tile, BLOCK_M), lines(column_tile, BLOCK_N)
    row, column = tl.minimum(i, rows - 1), tl.minimum(j, columns - 1)
    s = tile_products(x, y, i, j, rows, columns, x_stride, y_stride, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    s *= tl.load(scale)
    across = tile_moves(
        x, y, x_across, y_across, across_scale, i, j, rows, columns, x_stride, y_stride,
        WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
    )  # fmt: skip
    own, meets = own_pairs(row, row_tile, column_tile, diagonal, row_lse, "diagonal", BLOCK_M, BLOCK_N)
    if meets:
        across = tl.where(tl.arange(0, BLOCK_N)[None, :] == own[:, None], 0.0, across)
    terms = exponential(s, tl.load(row_lse + row)[:, None]) * across
    if not EVEN:
        terms = tl.where(j[None, :] < columns, terms, 0.0)
    tl.store(row_sums + column_tile.to(tl.int64) * rows + i, tl.sum(terms, 1), mask=i < rows)

    down = across
    if SEPARATE:
        down = tile_moves(
            x, y, x_down, y_down, down_scale, i, j, rows, columns, x_stride, y_stride,
            WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        if meets:
            down = tl.where(tl.arange(0, BLOCK_N)[None, :] == own[:, None], 0.0, down)
    terms = exponential(s, tl.load(column_lse + column)[None, :]) * down
    if not EVEN:
        terms = tl.where(i[:, None] < rows, terms, 0.0)
    tl.store(column_sums + row_tile.to(tl.int64) * columns + j, tl.sum(terms, 0), mask=j < columns)
