# SPDX-License-Identifier: Apache-2.0
"""The gradients of LayerNorm of silu(gate) * value: the product is computed again, nothing of it was kept."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .form import on_device_of, unit_inner_stride
from .norm_rows import gradient_of_norm, partial_sums, row_options
from .swiglu_norm import logistic


@triton.jit
def swiglu_norm_gradient_rows(
    grad,
    gate,
    value,
    weight,
    mean,
    rstd,
    d_gate,
    d_value,
    partials,
    rows,
    stretch,
    grad_stride,
    gate_stride,
    value_stride,
    out_stride,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program, `stretch` consecutive rows; their sums for weight and bias go to partials[0 and 1, program]."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    for_weight = tl.zeros((BLOCK,), tl.float32)
    for_bias = tl.zeros((BLOCK,), tl.float32)
    for row in range(program * stretch, tl.minimum((program + 1) * stretch, rows)):
        g = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(value + row * value_stride + column, mask=inside, other=0.0).to(tl.float32)
        incoming = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
        row_mean, row_rstd = tl.load(mean + row), tl.load(rstd + row)
        s = logistic(g)
        z = tl.where(inside, (g * s * v - row_mean) * row_rstd, 0.0)
        for_weight += incoming * z
        for_bias += incoming
        d = gradient_of_norm(incoming * w, z, row_rstd, HIDDEN)
        # Outside, g and v are zero, and so are both.
        to = row * out_stride + column
        tl.store(d_gate + to, d * v * s * (1.0 + g * (1.0 - s)), mask=column < WIDTH)
        tl.store(d_value + to, d * g * s, mask=column < WIDTH)
    to = program * HIDDEN + column
    tl.store(partials + to, for_weight, mask=inside)
    tl.store(partials + tl.num_programs(0).to(tl.int64) * HIDDEN + to, for_bias, mask=inside)


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
