# SPDX-License-Identifier: Apache-2.0
"""Forward statistics of S = scale * X Yᵀ: row and column sums from one exponential per logit."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import add_products, exponential, lines, own_pairs, past_edges, store_tile, swizzled_tile


@triton.jit(do_not_specialize=["diagonal", "stack", "width"])
def tile_statistics(
    x,
    y,
    scale,
    rows,
    columns,
    x_stride,
    y_stride,
    diagonal,
    labels,
    stack,
    width,
    row_sums,
    row_offsets,
    column_sums,
    column_offsets,
    kept,
    kept_stride,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    OWN: tl.constexpr,
    FOLD: tl.constexpr,
    KEEP: tl.constexpr,
):
    """One program, a stack of up to `stack` tiles that lie under each other.

    Per tile, with o its largest logit: o to row_offsets[row tile, column tile] and sum_j exp(s_ij - o) to
    row_sums[column tile, i]. Per stack, o being its largest logit: o to column_offsets[stack, column tile] and
    sum_i exp(s_ij - o) to column_sums[stack, j]. Every element is written by exactly one program: no atomics, the same
    bits every time. Own pairs (OWN "diagonal", see own_pairs) are left out; a tile of which nothing is left has the
    offset -inf. With KEEP, the products <x_i, y_j> go to kept [rows, columns] fp32 as well.

    Column sums cross from thread to thread once a stack: until then each thread adds up its own rows, FOLD of which it
    holds in one tile. Logarithms are left to the merge: here they would cost a tenth of the tile's instructions.
    """
    column_tiles = tl.cdiv(columns, BLOCK_N)
    band, column_tile = swizzled_tile(tl.program_id(0), rows, columns, BLOCK_M * stack, BLOCK_N, GROUP)
    j = lines(column_tile, BLOCK_N)
    factor = tl.load(scale)
    highest = float("-inf")
    totals = tl.zeros((BLOCK_M // FOLD, BLOCK_N), dtype=tl.float32)
    last = tl.minimum((band + 1) * stack, tl.cdiv(rows, BLOCK_M))
    # What the compiler would compute once for all tiles of a stack costs registers that the sums need.
    for row_tile in tl.range(band * stack, last, disable_licm=True):
        i = lines(row_tile, BLOCK_M)
        products = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        products = add_products(
            products, x, y, i, j, rows, columns, x_stride, y_stride, WIDTH, BLOCK_K, PRECISION, width
        )
        if KEEP:
            store_tile(kept, products, i, j, rows, kept_stride, False)
        logits = past_edges(products * factor, row_tile, column_tile, rows, columns, BLOCK_M, BLOCK_N)
        if OWN != "none":
            inside = tl.minimum(i, rows - 1)
            own, meets = own_pairs(inside, row_tile, column_tile, diagonal, labels, OWN, BLOCK_M, BLOCK_N)
            if meets:
                logits = tl.where(tl.arange(0, BLOCK_N)[None, :] == own[:, None], float("-inf"), logits)
        # In nats, as the backward takes them: a term that is all of its line must come back as exactly one.
        offset = tl.max(logits)
        terms = exponential(logits, tl.where(offset == float("-inf"), 0.0, offset))
        tl.store(row_offsets + tl.cast(row_tile, tl.int64) * column_tiles + column_tile, offset)
        tl.store(row_sums + tl.cast(column_tile, tl.int64) * rows + i, tl.sum(terms, 1), mask=i < rows)
        raised = tl.maximum(highest, offset)
        anchor = tl.where(raised == float("-inf"), 0.0, raised)
        totals *= exponential(highest, anchor)
        totals += folded(terms, BLOCK_M, BLOCK_N, FOLD) * exponential(offset, anchor)
        highest = raised
    tl.store(column_offsets + tl.cast(band, tl.int64) * column_tiles + column_tile, highest)
    tl.store(column_sums + tl.cast(band, tl.int64) * columns + j, tl.sum(totals, 0), mask=j < columns)


@triton.jit
def folded(terms, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FOLD: tl.constexpr):
    """Sums [BLOCK_M / FOLD, BLOCK_N] of the rows that one thread holds, in the fragments of mma and wgmma: pairs eight
    apart, and the two halves of the tile."""
    if FOLD >= 2:
        terms = tl.sum(tl.reshape(terms, (BLOCK_M // 16, 2, 8, BLOCK_N)), 1)
    if FOLD == 4:
        terms = tl.sum(tl.reshape(terms, (2, BLOCK_M // 32, 8, BLOCK_N)), 0)
    return tl.reshape(terms, (BLOCK_M // FOLD, BLOCK_N))
