# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of picture tokens, queries and keys in one pass."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def turn_tokens(
    query,
    key,
    cosines,
    sines,
    places,
    turned_query,
    turned_key,
    pictures,
    tokens,
    query_tokens,
    heads,
    table,
    query_picture_stride,
    query_token_stride,
    query_head_stride,
    key_picture_stride,
    key_token_stride,
    key_head_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    PLACES: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """One program: BLOCK tokens, counted through all pictures, with all heads. Rows of the tables are [WIDTH / 2]; a
    place outside [0, table) gives NaN, and nothing there is read.
    """
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    picture, token = number // tokens, number % tokens
    there = picture < pictures
    moved = there & (token > 0)
    place = token - 1
    if PLACES:
        place = tl.load(places + picture * (tokens - 1) + place, mask=moved, other=0)
    pair = tl.arange(0, BLOCK_WIDTH // 2)
    angles = place[:, None] * (WIDTH // 2) + pair[None, :]
    known = (moved & (place >= 0) & (place < table))[:, None] & (pair < WIDTH // 2)[None, :]
    cosine = tl.load(cosines + angles, mask=known, other=float("nan"))
    sine = tl.load(sines + angles, mask=known, other=float("nan"))
    if INVERSE:
        sine = -sine

    query_at = picture * query_picture_stride + token * query_token_stride
    key_at = picture * key_picture_stride + token * key_token_stride
    query_to = (picture * query_tokens + token) * heads * WIDTH
    key_to = number * heads * WIDTH
    query_there = there & (token < query_tokens)
    for head in range(0, heads):
        turn(
            query, turned_query, query_at + head * query_head_stride, query_to + head * WIDTH, query_there, moved,
            cosine, sine, WIDTH, BLOCK, BLOCK_WIDTH,
        )  # fmt: skip
        turn(
            key, turned_key, key_at + head * key_head_stride, key_to + head * WIDTH, there, moved,
            cosine, sine, WIDTH, BLOCK, BLOCK_WIDTH,
        )  # fmt: skip


@triton.jit
def turn(
    source, target, start, end, there, moved, cosine, sine,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """One head of BLOCK tokens. The numbers of a pair are neighbours in a thread's registers, so none is exchanged
    between threads.
    """
    channel = tl.arange(0, BLOCK_WIDTH)[None, :]
    inside = there[:, None] & (channel < WIDTH)
    x = tl.load(source + start[:, None] + channel, mask=inside, other=0.0)
    even, odd = tl.split(tl.reshape(x.to(tl.float32), (BLOCK, BLOCK_WIDTH // 2, 2)))
    pairs = tl.join(even * cosine - odd * sine, odd * cosine + even * sine)
    y = tl.reshape(pairs, (BLOCK, BLOCK_WIDTH)).to(x.dtype)
    tl.store(target + end[:, None] + channel, tl.where(moved[:, None], y, x), mask=inside)
