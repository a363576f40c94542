# SPDX-License-Identifier: Apache-2.0
"""torch's scaled dot-product attention, with another backward for 16-bit tensors on a CPU.

torch's CPU kernel has a backward for them that multiplies small 16-bit tiles without the instructions for it. The same
backward in float32, on the saved tensors widened, is faster the shorter the sequences are, and rounds less
(tests/encoders/test_sdpa.py). One core with AVX512-BF16, forward plus backward in bf16: 5.0 times as fast for captions
of 14 tokens, 2.4 for pictures of 50, 1.2 for those of 197 (python -m bench.encoder_ops,
bench/results/cpu-2core/encoder-ops-2026-12-01.json). Saved is what torch saves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
    """softmax(q kᵀ / √width) v over [n, heads, tokens, width]: torch's function of this name, no mask, no dropout."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    if half and query.device.type == "cpu" and query.ndim == 4 and query.numel() and _learns(query, key, value):
        attended: Tensor = _WideBackward.apply(query, key, value, is_causal)
        return attended
    return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _WideBackward(torch.autograd.Function):
    """torch's kernels: the forward in 16 bit (its products accumulate in float32), the backward in float32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
        """[n, heads, tokens, width]."""
        attended, log_sums = _FLASH(query, key, value, 0.0, is_causal)
        ctx.save_for_backward(query, key, value, attended, log_sums)
        ctx.is_causal = is_causal
        return attended

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the inputs' dtype."""
        *halves, log_sums = ctx.saved_tensors
        wide = (tensor.float() for tensor in (gradient, *halves))
        gradients = _FLASH_BACKWARD(*wide, log_sums, 0.0, ctx.is_causal)
        return (*(each.to(gradient.dtype) for each in gradients), None)
