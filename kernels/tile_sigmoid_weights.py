# SPDX-License-Identifier: Apache-2.0
"""The sigmoid family: loss and weights of one tile in one sweep, positives on the diagonal or in lists."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import LOG2E, lines, own_pairs, past_edges, store_tile, swizzled_tile, tile_products


@triton.jit(do_not_specialize=["diagonal"])
def tile_sigmoid_weights(
    x,
    y,
    scale,
    rows,
    columns,
    x_stride,
    y_stride,
    diagonal,
    labels,
    starts,
    bias,
    losses,
    sums,
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
    WANT_WEIGHTS: tl.constexpr,
):
    """One program, one tile of X = S + bias. With z = +1 on positives and -1 elsewhere, writes sum softplus(-z X) to
    losses[program] and, with WANT_WEIGHTS, UNIT * G = -UNIT * z sigmoid(-z X) to weights [rows, columns].

    OWN "diagonal": positives are the pairs (i, i + diagonal), bias is [1], and sums[program] gets the tile's sum of G.
    OWN "lists": positives of row i in column tile t are labels[starts[i, t] : starts[i, t + 1]], ascending (a label may
    repeat), bias is [columns], and sums[row tile, j] gets the column sums of G.
    """
    program = tl.program_id(0)
    row_tile, column_tile = swizzled_tile(program, rows, columns, BLOCK_M, BLOCK_N, GROUP)
    i, j = lines(row_tile, BLOCK_M), lines(column_tile, BLOCK_N)
    products = tile_products(x, y, i, j, rows, columns, x_stride, y_stride, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)

    # v = -z X: negatives as they come, positives turned, and -inf past the edges, where loss and weight are then zero.
    i_inside = tl.minimum(i, rows - 1)
    if OWN == "diagonal":
        v = products * tl.load(scale) + tl.load(bias)
        own, count = own_pairs(i_inside, row_tile, column_tile, diagonal, labels, OWN, BLOCK_M, BLOCK_N)
        first = own
    else:
        v = products * tl.load(scale) + tl.load(bias + tl.minimum(j, columns - 1))[None, :]
        slot = starts + i_inside * (tl.cdiv(columns, BLOCK_N) + 1) + column_tile
        first, own = tl.load(slot), tl.load(slot + 1)
        count = tl.max(own - first, 0)
    v = turned(v, first, own, count, labels, column_tile, OWN, BLOCK_N)
    v = past_edges(v, row_tile, column_tile, rows, columns, BLOCK_M, BLOCK_N)

    t = tl.exp2(-tl.abs(v) * LOG2E)
    tl.store(losses + program, tl.sum(tl.maximum(v, 0.0) + log_one_plus(t)))
    if WANT_WEIGHTS:
        result = tl.where(v >= 0.0, 1.0, t) / (1.0 + t)
        result = turned(result, first, own, count, labels, column_tile, OWN, BLOCK_N)
        if OWN == "diagonal":
            tl.store(sums + program, tl.sum(result))
        else:
            tl.store(sums + row_tile.to(tl.int64) * columns + j, tl.sum(result, 0), mask=j < columns)
        store_tile(weights, result * UNIT, i, j, rows, weights_stride, EVEN)


@triton.jit
def turned(v, first, own, count, labels, column_tile, OWN: tl.constexpr, BLOCK_N: tl.constexpr):
    """The tile with the sign of its positives turned."""
    column = tl.arange(0, BLOCK_N)[None, :]
    if OWN == "diagonal":
        if count:
            v = tl.where(column == own[:, None], -v, v)
    else:
        # As many rounds as the row with most positives has here, which is one or two: a list is spread over all tiles.
        for k in range(0, count):
            inside = first + k < own
            label = tl.load(labels + first + k, mask=inside, other=-1)
            repeated = (k > 0) & (tl.load(labels + first + k - 1, mask=inside & (first + k > 0), other=-1) == label)
            local = tl.where(inside & (repeated == 0), label - column_tile.to(tl.int64) * BLOCK_N, -1).to(tl.int32)
            v = tl.where(column == local[:, None], -v, v)
    return v


@triton.jit
def log_one_plus(t):
    """log(1 + t) for t in [0, 1] to 2e-7 of its value: a minimax polynomial of log(1 + t) / t. Rounding 1 + t first
    would lose what a confident pair contributes.
    """
    p = t * 5.232607945799828e-3 - 2.950490266084671e-2
    p = p * t + 7.822541892528534e-2
    p = p * t - 1.366320252418518e-1
    p = p * t + 1.91059872508049e-1
    p = p * t - 2.484297752380371e-1
    p = p * t + 3.331909775733948e-1
    p = p * t - 4.999949336051941e-1
    return t * (p * t + 9.999999403953552e-1)
