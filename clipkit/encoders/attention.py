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
from torch.nn.functional import scaled_dot_product_attention

from clipkit.encoders.packing import PackedText
from clipkit.errors import value_error

PACKED_BACKENDS = ("torch", "flash_attn", "groups")
FORCE_VARIABLE = "CLIPKIT_PACKED_ATTENTION"
_MAX_FLASH_HEAD = 256


def dense_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every token of a picture sees every other. [n, tokens, heads, head width]; the query may have fewer tokens."""
    out = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, text: PackedText) -> Tensor:
    """Causal attention inside each caption.

    key, value: [T, heads, head width]. query: the same, or [n, heads, head width] holding only each caption's last
    token, which sees its whole caption. Returns the query's shape.
    """
    backend = packed_backend(query.device, query.dtype, query.shape[-1])
    only_last = query.shape[0] != key.shape[0]
    if backend == "groups":
        return _grouped(query, key, value, text, only_last)
    starts = text.cu_seqlens
    if only_last:
        query_starts = torch.arange(len(text) + 1, dtype=torch.int32, device=query.device)
        longest_query = 1
    else:
        query_starts, longest_query = starts, text.context_length
    run = _torch_varlen() if backend == "torch" else _flash_attn_varlen()
    return run(query, key, value, query_starts, starts, longest_query, text.context_length, not only_last)


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


@functools.lru_cache(maxsize=1)
def _torch_varlen() -> Callable[..., Tensor]:
    """torch's varlen attention with one signature: 2.10 says is_causal, later ones say window_size."""
    attend: Any = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    by_flag = "is_causal" in inspect.signature(attend).parameters

    def run(
        q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, q_max: int, k_max: int, causal: bool
    ) -> Tensor:
        how = {"is_causal": causal} if by_flag else {"window_size": (-1, 0) if causal else (-1, -1)}
        return attend(q, k, v, q_starts, k_starts, q_max, k_max, **how)

    return run


@functools.lru_cache(maxsize=1)
def _flash_attn_varlen() -> Callable[..., Tensor]:
    attend: Any = importlib.import_module("flash_attn").flash_attn_varlen_func

    def run(
        q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, q_max: int, k_max: int, causal: bool
    ) -> Tensor:
        return attend(q, k, v, q_starts, k_starts, q_max, k_max, causal=causal)

    return run


@torch.compiler.disable
def _grouped(query: Tensor, key: Tensor, value: Tensor, text: PackedText, only_last: bool) -> Tensor:
    """One dense call for each run of captions of equal length.

    Kept out of torch.compile: the runs change with every batch, and each new set would compile anew.
    """
    if not text.groups:
        return query
    _, heads, width = key.shape
    sizes = [length * count for length, count in text.groups]
    query_sizes = [count for _, count in text.groups] if only_last else sizes
    outputs = []
    for (length, count), q, k, v in zip(
        text.groups, query.split(query_sizes), key.split(sizes), value.split(sizes), strict=True
    ):
        out = scaled_dot_product_attention(
            q.view(count, -1, heads, width).transpose(1, 2),
            k.view(count, length, heads, width).transpose(1, 2),
            v.view(count, length, heads, width).transpose(1, 2),
            is_causal=not only_last,
        )
        outputs.append(out.transpose(1, 2).reshape(-1, heads, width))
    return torch.cat(outputs)
