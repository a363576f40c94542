# SPDX-License-Identifier: Apache-2.0
"""Statistics of the rows of S alone, relative to their own largest logits: nothing is ever flushed."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import add_products, exponential, lines, own_pairs, past_edges, store_tile


@triton.jit(do_not_specialize=["diagonal", "stretch", "width"])
def row_sweep(
    x,
    y,
    scale,
    rows,
    columns,
    x_stride,
    y_stride,
    diagonal,
    labels,
    row_scale,
    suspect,
    stretch,
    width,
    log_sums,
    means,
    kept,
    kept_stride,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    OWN: tl.constexpr,
    SCALED: tl.constexpr,
    SUSPECTS: tl.constexpr,
    MEANS: tl.constexpr,
    KEEP: tl.constexpr,
):
    """One program, BLOCK_M rows along `stretch` column tiles: their log-sum-exps over these columns to
    log_sums[stretch, rows] and, with MEANS, the means of <x_i, y_j> under that softmax to means[stretch, rows]; -inf
    and 0 where nothing is left. Own pairs (OWN "diagonal" or "labels", see own_pairs) are left out.

    With SCALED, row i's logits are (scale row_scale[i]) <x_i, y_j>. With SUSPECTS, rows that are not marked in suspect
    [rows] int8 are left as they are, and a program without a marked row does nothing; the host never learns whether
    there was one. With KEEP, the products <x_i, y_j> go to kept [rows, columns] fp32 as well.
    """
    row_tiles = tl.cdiv(rows, BLOCK_M)
    # Programs that run together walk the same columns, which L2 then holds.
    row_tile, part = tl.program_id(0) % row_tiles, tl.program_id(0) // row_tiles
    i = lines(row_tile, BLOCK_M)
    inside = tl.minimum(i, rows - 1)
    wanted = i < rows
    first = part * stretch
    last = tl.minimum(first + stretch, tl.cdiv(columns, BLOCK_N))
    if SUSPECTS:
        wanted = tl.load(suspect + i, mask=wanted, other=0) != 0
        last = tl.where(tl.max(wanted.to(tl.int32), 0) > 0, last, first)
    factor = tl.load(scale)
    if SCALED:
        factor = (factor * tl.load(row_scale + inside))[:, None]

    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    moment = tl.zeros((BLOCK_M,), tl.float32)
    for column_tile in tl.range(first, last, disable_licm=True):
        j = lines(column_tile, BLOCK_N)
        products = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        products = add_products(
            products, x, y, i, j, rows, columns, x_stride, y_stride, WIDTH, BLOCK_K, PRECISION, width
        )
        if KEEP:
            store_tile(kept, products, i, j, rows, kept_stride, False)
        logits = past_edges(products * factor, row_tile, column_tile, rows, columns, BLOCK_M, BLOCK_N)
        if OWN != "none":
            own, meets = own_pairs(inside, row_tile, column_tile, diagonal, labels, OWN, BLOCK_M, BLOCK_N)
            if meets:
                is_own = tl.arange(0, BLOCK_N)[None, :] == own[:, None]
                logits = tl.where(is_own, float("-inf"), logits)
                if MEANS:
                    products = tl.where(is_own, 0.0, products)  # a NaN there is left out too
        raised = tl.maximum(highest, tl.max(logits, 1))
        anchor = tl.where(raised == float("-inf"), 0.0, raised)
        fading = exponential(highest, anchor)
        terms = exponential(logits, anchor[:, None])
        total = total * fading + tl.sum(terms, 1)
        if MEANS:
            moment = moment * fading + tl.sum(terms * products, 1)
        highest = raised

    at = tl.cast(part, tl.int64) * rows + i
    empty = total == 0.0
    divisor = tl.where(empty, 1.0, total)
    tl.store(log_sums + at, tl.where(empty, float("-inf"), highest + tl.log(divisor)), mask=wanted)
    if MEANS:
        tl.store(means + at, moment / divisor, mask=wanted)
