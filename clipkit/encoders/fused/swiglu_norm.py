# SPDX-License-Identifier: Apache-2.0
"""The inside of a SwiGLU MLP with sub-LN (EVA-02, Fang et al. 2023): activation, gate and LayerNorm in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipkit.encoders.fused._shared import as_rows, check_affine, check_float, check_like, for_the_compiler
from clipkit.engine import norms
from clipkit.engine.norms import Normed
from clipkit.engine.precision import accumulation
from clipkit.engine.torch_backend.norms import swiglu_norm_formula


def swiglu_norm(
    gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backend: str | None = None
) -> Tensor:
    """LayerNorm of silu(gate) * value over the last axis, in the inputs' dtype.

    Where the hidden width is padded (EVA02-L's 2730 to 2752, so that rows are aligned), the statistics are those of the
    columns that weight and bias have; the columns beyond come out as zero, and their gradients are zero.

    All is computed in fp32 (float64 for float64), and the product is not rounded before it is normalised. For the
    backward pass gate and value are kept, with two numbers a row; the gradients of weight and bias are added up in a
    fixed order.

    Args:
        gate: [..., hidden or more], the half that passes through SiLU. Rows may lie apart, as the two halves of one
            projection's output do.
        value: the same shape and dtype.
        weight: [hidden], any float dtype.
        bias: [hidden].
        eps: added to the variance.
        backend: the engine's backend by name; None for the device's default.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not fit together.
    """
    check_float("gate", gate)
    check_like("value", value, "gate", gate)
    check_affine(weight, bias, gate, least=1)
    if for_the_compiler("swiglu_norm", gate, backend):
        return swiglu_norm_formula(gate, value, weight, bias, eps)[0]
    return _swiglu_norm(gate, value, weight, bias, eps, backend or "")[0]


@torch.library.custom_op("clipkit::swiglu_norm", mutates_args=())
def _swiglu_norm(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str) -> Normed:
    out, mean, rstd = norms.swiglu_norm(as_rows(gate), as_rows(value), weight, bias, eps, backend=backend)
    return out.view(gate.shape), mean.view(gate.shape[:-1]), rstd.view(gate.shape[:-1])


@_swiglu_norm.register_fake
def _(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str) -> Normed:
    mean = gate.new_empty(gate.shape[:-1], dtype=accumulation(gate))
    return gate.new_empty(gate.shape), mean, torch.empty_like(mean)


@torch.library.custom_op("clipkit::swiglu_norm_gradients", mutates_args=())
def _gradients(
    grad: Tensor, gate: Tensor, value: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = (as_rows(grad), as_rows(gate), as_rows(value))
    d_gate, d_value, d_weight, d_bias = norms.swiglu_norm_gradients(
        *rows, weight, mean.flatten(), rstd.flatten(), backend=backend
    )
    return d_gate.view(gate.shape), d_value.view(gate.shape), d_weight, d_bias


@_gradients.register_fake
def _(
    grad: Tensor, gate: Tensor, value: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    vector = weight.new_empty(weight.shape, dtype=accumulation(gate))
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape), vector, torch.empty_like(vector)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Normed) -> None:
    gate, value, weight, bias, _, ctx.backend = inputs
    ctx.save_for_backward(gate, value, weight, *output[1:])
    ctx.bias_dtype = bias.dtype


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: activation checkpointing hands each tensor out a single time
    weight = saved[2]
    d_gate, d_value, d_weight, d_bias = _gradients(grad, *saved, ctx.backend)
    return d_gate, d_value, d_weight.to(weight.dtype), d_bias.to(ctx.bias_dtype), None, None


_swiglu_norm.register_autograd(_backward, setup_context=_setup)
