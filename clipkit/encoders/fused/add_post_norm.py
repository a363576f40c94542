# SPDX-License-Identifier: Apache-2.0
"""A residual sum with the LayerNorm of its branch, in one pass: the post-norm blocks of EVA02-E."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipkit.encoders.fused._norm_gradients import norm_gradients
from clipkit.encoders.fused._shared import as_rows, check_affine, check_branch, for_the_compiler
from clipkit.engine import norms
from clipkit.engine.norms import Normed
from clipkit.engine.precision import accumulation
from clipkit.engine.torch_backend.norms import add_post_norm_formula


def add_post_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backend: str | None = None
) -> Tensor:
    """x + LayerNorm(branch) over the last axis, in x's dtype.

    Computed in fp32 (float64 for float64) and rounded once, after the sum. x may be fp32 beside a branch of 16 bit, as
    under autocast. For the backward pass the branch is kept, with two numbers a row; the gradients of weight and bias
    are added up in a fixed order.

    Args and Raises as of `add_norm`.
    """
    check_branch(x, branch)
    check_affine(weight, bias, x, least=x.shape[-1])
    if for_the_compiler("add_post_norm", x, backend):
        return add_post_norm_formula(x, branch, weight, bias, eps)[0]
    return _add_post_norm(x, branch, weight, bias, eps, backend or "")[0]


@torch.library.custom_op("clipkit::add_post_norm", mutates_args=())
def _add_post_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str) -> Normed:
    out, mean, rstd = norms.add_post_norm(as_rows(x), as_rows(branch), weight, bias, eps, backend=backend)
    return out.view(x.shape), mean.view(x.shape[:-1]), rstd.view(x.shape[:-1])


@_add_post_norm.register_fake
def _(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str) -> Normed:
    mean = x.new_empty(x.shape[:-1], dtype=accumulation(x))
    return x.new_empty(x.shape), mean, torch.empty_like(mean)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Normed) -> None:
    x, branch, weight, bias, _, ctx.backend = inputs
    ctx.save_for_backward(branch, weight, *output[1:])
    ctx.dtypes = (x.dtype, weight.dtype, bias.dtype)


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    x_dtype, weight_dtype, bias_dtype = ctx.dtypes
    d_branch, d_weight, d_bias = norm_gradients(grad, None, *ctx.saved_tensors, ctx.backend)
    return grad.to(x_dtype), d_branch, d_weight.to(weight_dtype), d_bias.to(bias_dtype), None, None


_add_post_norm.register_autograd(_backward, setup_context=_setup)
