# SPDX-License-Identifier: Apache-2.0
"""Which attention kernel runs: dense for pictures, variable-length for packed text.

Packed text has three backends. `torch` is PyTorch's own variable-length flash attention (torch >= 2.10), `flash_attn`
the package of that name; both need CUDA and 16-bit inputs. `groups` works everywhere: captions of equal length are
neighbours in a PackedText, so each run of them is a plain dense batch, a view without copy, padding or mask.
CLIPKIT_PACKED_ATTENTION forces one of them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clipkit.encoders.packing import PackedText
from clipkit.encoders.sdpa import scaled_dot_product_attention
from clipkit.errors import value_error

PACKED_BACKENDS = ("torch", "flash_attn", "groups")
FORCE_VARIABLE = "CLIPKIT_PACKED_ATTENTION"
_MAX_FLASH_HEAD = 256

PackedAttention = Callable[[Tensor, Tensor, Tensor, PackedText], Tensor]
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, bool], Tensor]


def dense_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every token of a picture sees every other. [n, tokens, heads, head width]; the query may have fewer tokens."""
    out = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


def packed_attention(device: torch.device, dtype: torch.dtype, head_width: int) -> PackedAttention:
    """Causal attention inside each caption, for inputs of such a kind: a function of (query, key, value, text).

    key, value: [T, heads, head width]. query: the same, or [n, heads, head width] holding only each caption's last
    token, which sees its whole caption. It returns the query's shape.

    Chosen once a forward pass and handed to the blocks, so that a compiled block looks nothing up.
    """
    backend = packed_backend(device, dtype, head_width)
    if backend == "groups":
        return grouped_attention
    return _over_starts(_torch_varlen() if backend == "torch" else _flash_attn_varlen())


def packed_backend(device: torch.device, dtype: torch.dtype, head_width: int) -> str:
    """The backend that `packed_attention` takes for such inputs: "torch", "flash_attn" or "groups".

    ValueError when CLIPKIT_PACKED_ATTENTION names an unknown one.
    """
    forced = os.environ.get(FORCE_VARIABLE)
    if forced:
        if forced not in PACKED_BACKENDS:
            raise value_error(
                FORCE_VARIABLE, got=repr(forced), want=" or ".join(PACKED_BACKENDS), fix="unset it to choose by device"
            )
        return forced
    flash_can = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    if flash_can and head_width <= _MAX_FLASH_HEAD and head_width % 8 == 0:
        return _installed_flash()
    return "groups"


@functools.lru_cache(maxsize=1)
def _installed_flash() -> str:
    if torch.cuda.get_device_capability() >= (8, 0):
        if importlib.util.find_spec("torch.nn.attention.varlen"):
            return "torch"
        if importlib.util.find_spec("flash_attn"):
            return "flash_attn"
    return "groups"


@functools.lru_cache(maxsize=2)
def _over_starts(kernel: Kernel) -> PackedAttention:
    def attend(query: Tensor, key: Tensor, value: Tensor, text: PackedText) -> Tensor:
        starts, longest = text.cu_seqlens, text.context_length
        if query.shape[0] == key.shape[0]:
            return kernel(query, key, value, starts, starts, longest, longest, True)
        one_each = torch.arange(len(text) + 1, dtype=torch.int32, device=query.device)
        return kernel(query, key, value, one_each, starts, 1, longest, False)

    return attend


@functools.lru_cache(maxsize=1)
def _torch_varlen() -> Kernel:
    """torch's varlen attention with one signature: 2.10 says is_causal, later ones say window_size."""
    attend: Any = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    if "is_causal" in inspect.signature(attend).parameters:
        return attend

    def windowed(
        q: Tensor, k: Tensor, v: Tensor, qs: Tensor, ks: Tensor, q_max: int, k_max: int, causal: bool
    ) -> Tensor:
        return attend(q, k, v, qs, ks, q_max, k_max, window_size=(-1, 0) if causal else (-1, -1))

    return windowed


@functools.lru_cache(maxsize=1)
def _flash_attn_varlen() -> Kernel:
    attend: Any = importlib.import_module("flash_attn").flash_attn_varlen_func

    def flash(q: Tensor, k: Tensor, v: Tensor, qs: Tensor, ks: Tensor, q_max: int, k_max: int, causal: bool) -> Tensor:
        return attend(q, k, v, qs, ks, q_max, k_max, causal=causal)

    return flash


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
