# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of picture tokens: the launch code around kernels/rows_rotation.py."""

from __future__ import annotations

import torch
import triton

from .form import FUSION, on_device_of, unit_inner_stride
from .rows_rotation import turn_tokens

BYTES = 4096
"""Of one head's tokens in a program of four warps: two loads of 16 bytes a thread. Twice as many took 88 registers in
fp32. What a token's angles cost is shared by all its heads, of queries and of keys.
"""


def rotate(
    query: torch.Tensor,
    key: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    places: torch.Tensor | None,
    *,
    inverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [n, tokens or 1, heads, d] and key [n, tokens, heads, d] with adjacent pairs turned by their angles,
    contiguous; tables fp32 [places, d / 2], places int64 [n, tokens - 1] or None (token t: row t - 1). Token 0 stays.
    """
    query, key = unit_inner_stride(query), unit_inner_stride(key)
    turned_query, turned_key = query.new_empty(query.shape), key.new_empty(key.shape)
    pictures, tokens, heads, width = key.shape
    if key.numel() == 0:
        return turned_query, turned_key
    block_width = triton.next_power_of_2(width)
    block = max(1, BYTES // (block_width * key.element_size()))
    with on_device_of(key):
        turn_tokens[(triton.cdiv(pictures * tokens, block),)](
            query,
            key,
            cosines.contiguous(),
            sines.contiguous(),
            key if places is None else places.contiguous(),
            turned_query,
            turned_key,
            pictures,
            tokens,
            query.shape[1],
            heads,
            cosines.shape[0],
            *query.stride()[:3],
            *key.stride()[:3],
            WIDTH=width,
            BLOCK=block,
            BLOCK_WIDTH=block_width,
            PLACES=places is not None,
            INVERSE=inverse,
            num_warps=4,
            **FUSION,
        )
    return turned_query, turned_key
