# SPDX-License-Identifier: Apache-2.0
"""How a tile of S = scale * X Yᵀ moves along a direction (DX, DY): R = scale * (X DYᵀ + DX Yᵀ)."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import add_products, tile_products


@triton.jit
def tile_moves(
    x,
    y,
    x_along,
    y_along,
    along_scale,
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
    """R = along_scale * (X y_alongᵀ + x_along Yᵀ) of a tile, both products in one accumulator."""
    moves = tile_products(x, y_along, i, j, rows, columns, x_stride, WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    moves = add_products(moves, x_along, y, i, j, rows, columns, WIDTH, y_stride, WIDTH, BLOCK_K, PRECISION)
    return moves * tl.load(along_scale)
