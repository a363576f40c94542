# SPDX-License-Identifier: Apache-2.0
"""LayerNorm of silu(gate) * value and its gradients: the launch code around kernels/rows_swiglu_norm*.py."""

from __future__ import annotations

import torch

from .form import on_device_of, unit_inner_stride
from .norm_launches import partial_sums, row_options
from .rows_swiglu_norm import swiglu_norm_rows
from .rows_swiglu_norm_gradients import swiglu_norm_gradient_rows


def swiglu_norm(
    gate: torch.Tensor, value: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(out, mean, rstd) for gate and value [rows, width]; weight and bias [hidden], hidden <= width. The last two are
    fp32 [rows].
    """
    gate, value, out = unit_inner_stride(gate), unit_inner_stride(value), gate.new_empty(gate.shape)
    rows, width = gate.shape
    mean = gate.new_empty(rows, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if rows:
        with on_device_of(gate):
            swiglu_norm_rows[(rows,)](
                gate,
                value,
                weight.contiguous(),
                bias.contiguous(),
                out,
                mean,
                rstd,
                gate.stride(0),
                value.stride(0),
                width,
                eps,
                HIDDEN=weight.shape[0],
                WIDTH=width,
                **row_options(width),
            )
    return out, mean, rstd


def swiglu_norm_gradients(
    grad: torch.Tensor,
    gate: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of gate and value [rows, width], in their dtype, and of weight and bias [hidden], fp32."""
    grad, gate, value = (unit_inner_stride(tensor) for tensor in (grad, gate, value))
    d_gate, d_value = gate.new_empty(gate.shape), value.new_empty(value.shape)
    rows, width = gate.shape
    stretch, partials = partial_sums(rows, weight)
    if rows:
        with on_device_of(gate):
            swiglu_norm_gradient_rows[(partials.shape[1],)](
                grad,
                gate,
                value,
                weight.contiguous(),
                mean,
                rstd,
                d_gate,
                d_value,
                partials,
                rows,
                stretch,
                grad.stride(0),
                gate.stride(0),
                value.stride(0),
                width,
                HIDDEN=weight.shape[0],
                WIDTH=width,
                **row_options(width),
            )
    return d_gate, d_value, partials[0].sum(0), partials[1].sum(0)
