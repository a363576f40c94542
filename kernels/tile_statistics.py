# SPDX-License-Identifier: Apache-2.0
"""Forward statistics of one tile of S = scale * X Yᵀ: row and column sums from one exponential per logit."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import LN2, LOG2E, lines, swizzled_tile, tile_products


@triton.jit(do_not_specialize=["diagonal"])
def tile_statistics(
    x,
    y,
    scale,
    rows,
    columns,
    x_stride,
    y_stride,
    diagonal,
    row_sums,
    column_sums,
    offsets,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    WITHOUT_DIAGONAL: tl.constexpr,
):
    """One program, one tile. x [rows, WIDTH], y [columns, WIDTH], unit stride along WIDTH; scale [1] fp32.

    With o the tile's largest logit, writes o to offsets[row tile, column tile], sum_j exp(s_ij - o) to
    row_sums[column tile, i] and sum_i exp(s_ij - o) to column_sums[row tile, j]. Every element is written by exactly
    one program: no atomics, the same bits every time. WITHOUT_DIAGONAL leaves out the pairs j == i + diagonal; a tile
    of which nothing is left has the offset 0. Logarithms are left to the merge: here they would cost a
    tenth of the tile's instructions.
    """
    row_tile, column_tile = swizzled_tile(tl.program_id(0), rows, columns, BLOCK_M, BLOCK_N, GROUP)
    i, j = lines(row_tile, BLOCK_M), lines(column_tile, BLOCK_N)
    products = tile_products(x, y, i, j, rows, columns, x_stride, y_stride, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)

    logits = products * (tl.load(scale) * LOG2E)
    if not EVEN_M:
        logits = tl.where(i[:, None] < rows, logits, float("-inf"))
    if not EVEN_N:
        logits = tl.where(j[None, :] < columns, logits, float("-inf"))
    if WITHOUT_DIAGONAL:
        logits = tl.where(j[None, :] == i[:, None] + diagonal, float("-inf"), logits)
    offset = tl.max(logits)
    if WITHOUT_DIAGONAL:
        offset = tl.where(offset == float("-inf"), 0.0, offset)
    terms = tl.exp2(logits - offset)

    tl.store(offsets + row_tile.to(tl.int64) * tl.cdiv(columns, BLOCK_N) + column_tile, offset * LN2)
    tl.store(row_sums + column_tile.to(tl.int64) * rows + i, tl.sum(terms, 1), mask=i < rows)
    tl.store(column_sums + row_tile.to(tl.int64) * columns + j, tl.sum(terms, 0), mask=j < columns)
