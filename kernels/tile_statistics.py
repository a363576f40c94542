# SPDX-License-Identifier: Apache-2.0
"""Forward statistics of one tile of S = scale * X Yᵀ: row and column sums from one exponential per logit."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["diagonal"])
def tile_statistics(
    x,
    y,
    scale,
    row_sums,
    column_sums,
    offsets,
    rows,
    columns,
    x_stride,
    y_stride,
    diagonal,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
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
    # Programs that run together share column tiles of Y in L2: walk GROUP row tiles down before stepping right.
    row_tiles = tl.cdiv(rows, BLOCK_M)
    column_tiles = tl.cdiv(columns, BLOCK_N)
    program = tl.program_id(0)
    per_group = GROUP * column_tiles
    first_row_tile = program // per_group * GROUP
    group_rows = tl.minimum(row_tiles - first_row_tile, GROUP)
    row_tile = first_row_tile + program % per_group % group_rows
    column_tile = program % per_group // group_rows

    # 64-bit from here on: rows * WIDTH passes 2**31 at a million samples of width 2048.
    i = row_tile.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = column_tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_tile = x + i[:, None] * x_stride + k[None, :]
    y_tile = y + j[None, :] * y_stride + k[:, None]

    products = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        # All conditions but the last are known when compiling: full tiles carry no masks.
        if EVEN_M and WIDTH % BLOCK_K == 0:
            a = tl.load(x_tile)
        else:
            a = tl.load(x_tile, mask=(i[:, None] < rows) & (start + k[None, :] < WIDTH), other=0.0)
        if EVEN_N and WIDTH % BLOCK_K == 0:
            b = tl.load(y_tile)
        else:
            b = tl.load(y_tile, mask=(j[None, :] < columns) & (start + k[:, None] < WIDTH), other=0.0)
        products = tl.dot(a, b, products, input_precision="ieee")
        x_tile += BLOCK_K
        y_tile += BLOCK_K

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

    tl.store(offsets + row_tile.to(tl.int64) * column_tiles + column_tile, offset * LN2)
    tl.store(row_sums + column_tile.to(tl.int64) * rows + i, tl.sum(terms, 1), mask=i < rows)
    tl.store(column_sums + row_tile.to(tl.int64) * columns + j, tl.sum(terms, 0), mask=j < columns)
