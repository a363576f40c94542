# SPDX-License-Identifier: Apache-2.0
"""What every sweep over S = scale * X Yᵀ does first: choose a tile, and multiply its rows of X and Y."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def swizzled_tile(program, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """(row tile, column tile) of a program. Programs that run together share column tiles of Y in L2: they walk GROUP
    row tiles down before they step right.
    """
    row_tiles = tl.cdiv(rows, BLOCK_M)
    per_group = GROUP * tl.cdiv(columns, BLOCK_N)
    first = program // per_group * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    return first + program % per_group % height, program % per_group // height


@triton.jit
def lines(tile, BLOCK: tl.constexpr):
    """The BLOCK row or column numbers of a tile, 64-bit: times the row stride they pass 2**31 at a million rows of
    width 2048.
    """
    return tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def tile_products(
    x,
    y,
    i,
    j,
    rows,
    columns,
    x_stride,
    y_stride,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """fp32 products of the rows i [BLOCK_M] of x [rows, WIDTH] and j [BLOCK_N] of y [columns, WIDTH], unit stride along
    WIDTH. PRECISION is "ieee", "tf32x3" or "tf32" and matters for fp32 inputs only.

    Lines past the edge repeat the last one, so that no load of the loop needs a mask for them: what they give is
    finite wherever the inputs are, and the caller's to drop.
    """
    k = tl.arange(0, BLOCK_K)
    x_tile = x + tl.minimum(i, rows - 1)[:, None] * x_stride + k[None, :]
    y_tile = y + tl.minimum(j, columns - 1)[None, :] * y_stride + k[:, None]
    products = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        if WIDTH % BLOCK_K == 0:
            a = tl.load(x_tile)
            b = tl.load(y_tile)
        else:
            a = tl.load(x_tile, mask=start + k[None, :] < WIDTH, other=0.0)
            b = tl.load(y_tile, mask=start + k[:, None] < WIDTH, other=0.0)
        products = tl.dot(a, b, products, input_precision=PRECISION)
        x_tile += BLOCK_K
        y_tile += BLOCK_K
    return products
