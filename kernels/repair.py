# SPDX-License-Identifier: Apache-2.0
"""Exact log-sum-exps for the few rows whose terms a tile-scalar offset flushed to zero."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import exponential, lines, own_pairs, tile_products


@triton.jit(do_not_specialize=["diagonal"])
def repair_rows(
    x,
    y,
    scale,
    rows,
    columns,
    x_stride,
    y_stride,
    diagonal,
    labels,
    suspect,
    log_sum,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    OWN: tl.constexpr,
):
    """One program, BLOCK_M rows: returns at once unless one of them is suspect, else overwrites log_sum of the suspect
    ones with a running-maximum pass over all columns. Arguments as in tile_statistics; columns are repaired by
    swapping x and y and negating the diagonal. The host never learns whether there was anything to do: nothing waits.
    """
    i = lines(tl.program_id(0), BLOCK_M)
    marked = tl.load(suspect + i, mask=i < rows, other=0) != 0
    if tl.max(marked.to(tl.int32), 0) > 0:
        factor = tl.load(scale)
        highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        for first in range(0, columns, BLOCK_N):
            j = first + tl.arange(0, BLOCK_N).to(tl.int64)
            products = tile_products(
                x, y, i, j, rows, columns, x_stride, y_stride, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
            )
            logits = tl.where(j[None, :] < columns, products * factor, float("-inf"))
            if OWN != "none":
                own, _ = own_pairs(
                    tl.minimum(i, rows - 1), 0, first // BLOCK_N, diagonal, labels, OWN, BLOCK_M, BLOCK_N
                )
                logits = tl.where(tl.arange(0, BLOCK_N)[None, :] == own[:, None], float("-inf"), logits)
            raised = tl.maximum(highest, tl.max(logits, 1))
            anchor = tl.where(raised == float("-inf"), 0.0, raised)
            total = total * exponential(highest, anchor) + tl.sum(exponential(logits, anchor[:, None]), 1)
            highest = raised
        empty = total == 0.0
        result = tl.where(empty, float("-inf"), highest + tl.log(tl.where(empty, 1.0, total)))
        tl.store(log_sum + i, result, mask=marked)
