# SPDX-License-Identifier: Apache-2.0
"""The weights of the exponential family, G_ij = exp(r_i S_ij - p_i) + exp(c_j S_ij - q_j), one tile a program."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import exponential, lines, load_tile, own_pairs, store_tile, swizzled_tile, tile_products


@triton.jit(do_not_specialize=["diagonal"])
def tile_exponential_weights(
    x,
    y,
    scale,
    rows,
    columns,
    x_stride,
    y_stride,
    diagonal,
    labels,
    row_offset,
    column_offset,
    row_scale,
    column_scale,
    own_weight,
    kept,
    kept_stride,
    weights,
    weights_stride,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    UNIT: tl.constexpr,
    OWN: tl.constexpr,
    BY_ROW: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    ROW_SCALED: tl.constexpr,
    COLUMN_SCALED: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Writes UNIT * G to weights [rows, columns]. row_offset is p [rows], column_offset q [columns]; a term that is not
    BY_ROW or BY_COLUMN is left out, and its offset not read. row_scale is r [rows] if ROW_SCALED, column_scale c
    [columns] if COLUMN_SCALED, else one and not read. Row i's own pair (OWN, see own_pairs) gets own_weight[i] instead:
    P_ii - 1 must not be rounded before the difference is taken. If KEPT, the products <x_i, y_j> are read from kept
    [rows, columns] fp32, which may be the weights' own memory.

    Two exponentials a logit. One would do, of S_ij - (p_i + q_j) / 2 and factors exp((p_i - q_j) / 2), but those
    overflow where p and q are 180 nats apart, which unnormalised features reach.
    """
    row_tile, column_tile = swizzled_tile(tl.program_id(0), rows, columns, BLOCK_M, BLOCK_N, GROUP)
    i, j = lines(row_tile, BLOCK_M), lines(column_tile, BLOCK_N)
    if KEPT:
        products = load_tile(kept, i, j, rows, kept_stride, EVEN)
    else:
        products = tile_products(
            x, y, i, j, rows, columns, x_stride, y_stride, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
        )

    i_inside, j_inside = tl.minimum(i, rows - 1), tl.minimum(j, columns - 1)
    row_factor, column_factor = tl.load(scale), tl.load(scale)
    if ROW_SCALED:
        row_factor = (row_factor * tl.load(row_scale + i_inside))[:, None]
    if COLUMN_SCALED:
        column_factor = (column_factor * tl.load(column_scale + j_inside))[None, :]
    if BY_ROW and BY_COLUMN:
        result = exponential(products * row_factor, tl.load(row_offset + i_inside)[:, None])
        result += exponential(products * column_factor, tl.load(column_offset + j_inside)[None, :])
    elif BY_ROW:
        result = exponential(products * row_factor, tl.load(row_offset + i_inside)[:, None])
    else:
        result = exponential(products * column_factor, tl.load(column_offset + j_inside)[None, :])
    own, meets = own_pairs(i_inside, row_tile, column_tile, diagonal, labels, OWN, BLOCK_M, BLOCK_N)
    if meets:
        is_own = tl.arange(0, BLOCK_N)[None, :] == own[:, None]
        result = tl.where(is_own, tl.load(own_weight + i_inside)[:, None], result)
    store_tile(weights, result * UNIT, i, j, rows, weights_stride, EVEN)
