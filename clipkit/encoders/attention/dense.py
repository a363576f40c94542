# SPDX-License-Identifier: Apache-2.0
"""Attention of pictures: every token sees every other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clipkit.encoders.attention.choice import Kernel, Table
from clipkit.encoders.attention.flash import FLASH
from clipkit.encoders.attention.sdpa import scaled_dot_product_attention

DenseAttention = Callable[[Tensor, Tensor, Tensor], Tensor]

_functions: dict[str, DenseAttention] = {}  # those chosen so far


def dense_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q kᵀ / √width) v. [n, tokens, heads, head width]; the query may have fewer tokens, the result is like it.

    ValueError when CLIPKIT_ATTENTION names a kernel that does not exist or cannot serve these tensors.
    """
    return _functions[_chosen(query.device, query.dtype, query.shape[-1])](query, key, value)


@torch.compiler.assume_constant_result
def _chosen(device: torch.device, dtype: torch.dtype, head_width: int) -> str:
    """A key of `_functions`: torch.compile takes no function for a constant."""
    kernel = DENSE.choose(device, dtype, head_width)
    _functions.setdefault(kernel.name, kernel.load())
    return kernel.name


def torch_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's scaled_dot_product_attention, which makes a choice of its own between flash, cuDNN and others."""
    out = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


DENSE = Table(
    purpose="pictures",
    variable="CLIPKIT_ATTENTION",
    kernels=(
        *(Kernel(name, package.obstacle, package.dense) for name, package in FLASH.items()),
        Kernel("torch", lambda device, dtype, head_width: None, lambda: torch_attention),
    ),
)
