# SPDX-License-Identifier: Apache-2.0
"""The finaliser: partial sums of many tiles into log-sum-exps, and which of them lost too much to be trusted."""

from __future__ import annotations

import triton
import triton.language as tl

# A term is flushed to zero 87 nats under its tile's offset. A line whose LSE is at most this many nats under the
# largest offset of its tiles has lost at most (number of terms) * exp(-27) of its sum; one further down is repaired.
SUSPECT_GAP = tl.constexpr(60.0)


@triton.jit
def merge_partials(
    sums,
    offsets,
    reference_state,
    total_state,
    largest_state,
    log_sum,
    suspect,
    lines,
    tiles,
    offset_line_stride,
    offset_tile_stride,
    LINES_PER_OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """One program, BLOCK lines (rows or columns). sums [tiles, lines]; line l of tile t has the offset
    offsets[l // LINES_PER_OFFSET * offset_line_stride + t * offset_tile_stride].

    Partials may come in several launches: all but the FIRST continue from the three state vectors [lines] (the running
    sum is total * exp(reference); largest is the largest offset seen), and all but the LAST leave them behind. The LAST
    writes log_sum [lines] fp32 and suspect [lines] int8. Tiles are taken in order: the same bits every time.
    """
    line = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = line < lines
    if FIRST:
        reference = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    else:
        reference = tl.load(reference_state + line, mask=inside, other=0.0)
        total = tl.load(total_state + line, mask=inside, other=0.0)
        largest = tl.load(largest_state + line, mask=inside, other=0.0)

    sums_at = sums + line
    offsets_at = offsets + line // LINES_PER_OFFSET * offset_line_stride
    for _ in range(0, tiles):
        part = tl.load(sums_at, mask=inside, other=0.0)
        offset = tl.load(offsets_at, mask=inside, other=0.0)
        largest = tl.maximum(largest, offset)
        # Tiles in which the line was flushed whole must not move the reference; a NaN is no zero, so it stays visible.
        raised = tl.where(part != 0.0, tl.maximum(reference, offset), reference)
        anchor = tl.where(raised == float("-inf"), 0.0, raised)
        total = total * tl.exp(reference - anchor) + tl.where(part != 0.0, part * tl.exp(offset - anchor), 0.0)
        reference = raised
        sums_at += lines
        offsets_at += offset_tile_stride

    if LAST:
        empty = total == 0.0
        result = tl.where(empty, float("-inf"), reference + tl.log(tl.where(empty, 1.0, total)))
        tl.store(log_sum + line, result, mask=inside)
        tl.store(suspect + line, (result < largest - SUSPECT_GAP).to(tl.int8), mask=inside)
    else:
        tl.store(reference_state + line, reference, mask=inside)
        tl.store(total_state + line, total, mask=inside)
        tl.store(largest_state + line, largest, mask=inside)
