# SPDX-License-Identifier: Apache-2.0
"""A residual sum and the LayerNorm that reads it next, in one pass: pre-norm blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipkit.encoders.fused._norm_gradients import norm_gradients
from clipkit.encoders.fused._shared import as_rows, check_affine, check_branch, for_the_compiler
from clipkit.engine import norms
from clipkit.engine.precision import accumulation
from clipkit.engine.torch_backend.norms import add_norm_formula

Sums = tuple[Tensor, Tensor, Tensor, Tensor]


def add_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """(x + branch, LayerNorm(x + branch)) over the last axis.

    Statistics in fp32 (float64 for float64), of the sum as it was rounded to x's dtype. The residual stream may be
    wider than the branch, as under autocast, where x is fp32 and what a Linear returns is 16 bit: then the sum stays
    fp32 and the normalised rows come in the branch's dtype, to which the next Linear would round them anyway.

    The sum, which the block keeps as it is, and two numbers a row are all that the backward pass needs; the gradients
    of weight and bias are added up in a fixed order.

    Args:
        x: [..., width], the residual stream.
        branch: [..., width], of x's dtype, or 16 bit beside an x of fp32.
        weight: [width], any float dtype.
        bias: [width].
        eps: added to the variance.
        backend: the engine's backend by name; None for the device's default.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not fit together.
    """
    check_branch(x, branch)
    check_affine(weight, bias, x, least=x.shape[-1])
    if for_the_compiler("add_norm", x, backend):
        return add_norm_formula(x, branch, weight, bias, eps)[:2]
    return _add_norm(x, branch, weight, bias, eps, backend or "")[:2]


@torch.library.custom_op("clipkit::add_norm", mutates_args=())
def _add_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str) -> Sums:
    total, normed, *statistics = norms.add_norm(as_rows(x), as_rows(branch), weight, bias, eps, backend=backend)
    mean, rstd = (statistic.view(x.shape[:-1]) for statistic in statistics)
    return total.view(x.shape), normed.view(x.shape), mean, rstd


@_add_norm.register_fake
def _(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str) -> Sums:
    mean = x.new_empty(x.shape[:-1], dtype=accumulation(x))
    return x.new_empty(x.shape), branch.new_empty(x.shape), mean, torch.empty_like(mean)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Sums) -> None:
    _, branch, weight, bias, _, ctx.backend = inputs
    total, _, *statistics = output
    ctx.save_for_backward(total, weight, *statistics)
    ctx.branch_dtype, ctx.bias_dtype = branch.dtype, bias.dtype


def _backward(ctx: Any, d_total: Tensor, d_normed: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: activation checkpointing hands each tensor out a single time
    weight = saved[1]
    d_x, d_weight, d_bias = norm_gradients(d_normed, d_total, *saved, ctx.backend)
    return d_x, d_x.to(ctx.branch_dtype), d_weight.to(weight.dtype), d_bias.to(ctx.bias_dtype), None, None


_add_norm.register_autograd(_backward, setup_context=_setup)
