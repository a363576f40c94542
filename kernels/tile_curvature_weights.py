# SPDX-License-Identifier: Apache-2.0
"""One tile of the matrices that the second sweep of a Hessian-vector product of the CLIP loss multiplies by."""

from __future__ import annotations

import triton
import triton.language as tl

from .moves import tile_moves
from .tiles import exponential, lines, own_pairs, store_tile, swizzled_tile, tile_products


@triton.jit(do_not_specialize=["diagonal"])
def tile_curvature_weights(
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
    row_mean,
    column_mean,
    row_miss,
    column_miss,
    positive_weight,
    diagonal,
    unit,
    moved,
    across_weights,
    down_weights,
    weights_stride,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    UNIT: tl.constexpr,
    SEPARATE: tl.constexpr,
):
    """One program, one tile of the matrices that multiply towers and directions, each [rows, columns] with
    weights_stride from row to row; towers, directions, P, Q and R as in tile_curvature_sums.

    moved = unit * UNIT * (P (R - row_mean) + Q (R - column_mean)), unit [1] fp32 keeping it in the dtype's range;
    across_weights = UNIT * (P - I) and down_weights = UNIT * (Q - I) if SEPARATE, else across_weights holds their sum.
    Where j == i + diagonal, these are differences near zero and come from outside: positive_weight [rows] for moved,
    -row_miss and -column_miss for P - I and Q - I.
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
    p = exponential(s, tl.load(row_lse + row)[:, None])
    q = exponential(s, tl.load(column_lse + column)[None, :])
    mixed = p * (across - tl.load(row_mean + row)[:, None])
    down = across
    if SEPARATE:
        down = tile_moves(
            x, y, x_down, y_down, down_scale, i, j, rows, columns, x_stride, y_stride,
            WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
    mixed += q * (down - tl.load(column_mean + column)[None, :])
    # The diagonals are folded in before anything is rounded.
    own, meets = own_pairs(row, row_tile, column_tile, diagonal, row_lse, "diagonal", BLOCK_M, BLOCK_N)
    if meets:
        is_own = tl.arange(0, BLOCK_N)[None, :] == own[:, None]
        mixed = tl.where(is_own, tl.load(positive_weight + row)[:, None], mixed)
    store_tile(moved, mixed * (tl.load(unit) * UNIT), i, j, rows, weights_stride, EVEN)
    if meets:
        is_own = tl.arange(0, BLOCK_N)[None, :] == own[:, None]
        p = tl.where(is_own, -tl.load(row_miss + row)[:, None], p)
        q = tl.where(is_own, -tl.load(column_miss + row)[:, None], q)
    if SEPARATE:
        store_tile(across_weights, p * UNIT, i, j, rows, weights_stride, EVEN)
        store_tile(down_weights, q * UNIT, i, j, rows, weights_stride, EVEN)
    else:
        store_tile(across_weights, (p + q) * UNIT, i, j, rows, weights_stride, EVEN)
