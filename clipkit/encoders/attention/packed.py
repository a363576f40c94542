# SPDX-License-Identifier: Apache-2.0
"""Causal attention inside each caption of packed text.

The flash-attention packages and torch's own `torch.nn.attention.varlen` (torch >= 2.10) need CUDA and 16-bit inputs.
`groups` works everywhere: captions of equal length are neighbours in a PackedText, so each run of them is a plain dense
batch, a view without copy, padding or mask.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clipkit.encoders.attention.choice import Kernel, Table
from clipkit.encoders.attention.flash import FLASH
from clipkit.encoders.attention.sdpa import scaled_dot_product_attention
from clipkit.encoders.packing import PackedText

PackedAttention = Callable[[Tensor, Tensor, Tensor, PackedText], Tensor]
VariableLength = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, bool], Tensor]


def packed_attention(device: torch.device, dtype: torch.dtype, head_width: int) -> PackedAttention:
    """Causal attention inside each caption, for inputs of such a kind: a function of (query, key, value, text).

    key, value: [T, heads, head width]. query: the same, or [n, heads, head width] holding only each caption's last
    token, which sees its whole caption. It returns the query's shape.

    Chosen once a forward pass and handed to the blocks, so that a compiled block looks nothing up.
    ValueError when CLIPKIT_PACKED_ATTENTION names a kernel that does not exist or cannot serve such inputs.
    """
    return PACKED.choose(device, dtype, head_width).load()


@functools.lru_cache(maxsize=8)
def over_starts(kernel: VariableLength) -> PackedAttention:
    """Packed attention by a kernel that takes cumulative lengths; the same function for the same kernel, always."""

    def attend(query: Tensor, key: Tensor, value: Tensor, text: PackedText) -> Tensor:
        starts, longest = text.cu_seqlens, text.context_length
        if query.shape[0] == key.shape[0]:
            return kernel(query, key, value, starts, starts, longest, longest, True)
        one_each = torch.arange(len(text) + 1, dtype=torch.int32, device=query.device)
        return kernel(query, key, value, one_each, starts, 1, longest, False)

    return attend


@functools.lru_cache(maxsize=1)
def torch_varlen() -> VariableLength:
    """torch's varlen attention with one signature: 2.10 says is_causal, later ones say window_size."""
    attend: Any = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    if "is_causal" in inspect.signature(attend).parameters:
        return attend

    def windowed(
        q: Tensor, k: Tensor, v: Tensor, qs: Tensor, ks: Tensor, q_max: int, k_max: int, causal: bool
    ) -> Tensor:
        return attend(q, k, v, qs, ks, q_max, k_max, window_size=(-1, 0) if causal else (-1, -1))

    return windowed


def _torch_obstacle(device: torch.device, dtype: torch.dtype, head_width: int) -> str | None:
    if device.type != "cuda":
        return "needs a CUDA device"
    if dtype not in (torch.float16, torch.bfloat16):
        return "needs float16 or bfloat16"
    if head_width > 256 or head_width % 8:
        return "needs heads of a multiple of 8 up to 256"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"needs compute capability 8.0; this device has {capability[0]}.{capability[1]}"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return "needs torch 2.10"
    return None


@torch.compiler.disable
def grouped_attention(query: Tensor, key: Tensor, value: Tensor, text: PackedText) -> Tensor:
    """One dense call for each run of captions of equal length.

    Kept out of torch.compile: the runs change with every batch, and each new set would compile anew.
    """
    if not text.groups:
        return query
    _, heads, width = key.shape
    causal = query.shape[0] == key.shape[0]
    sizes = [length * count for length, count in text.groups]
    query_sizes = sizes if causal else [count for _, count in text.groups]
    outputs = []
    for (length, count), q, k, v in zip(
        text.groups, query.split(query_sizes), key.split(sizes), value.split(sizes), strict=True
    ):
        out = scaled_dot_product_attention(
            q.view(count, -1, heads, width).transpose(1, 2),
            k.view(count, length, heads, width).transpose(1, 2),
            v.view(count, length, heads, width).transpose(1, 2),
            is_causal=causal,
        )
        outputs.append(out.transpose(1, 2).reshape(-1, heads, width))
    return torch.cat(outputs)


def _flash(name: str) -> Kernel:
    return Kernel(name, FLASH[name].obstacle, lambda: over_starts(FLASH[name].packed()))


PACKED = Table(
    purpose="captions",
    variable="CLIPKIT_PACKED_ATTENTION",
    kernels=(
        *(_flash(name) for name in FLASH),
        Kernel("torch", _torch_obstacle, lambda: over_starts(torch_varlen())),
        Kernel("groups", lambda device, dtype, head_width: None, lambda: grouped_attention),
    ),
)
