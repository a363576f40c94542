# SPDX-License-Identifier: Apache-2.0
"""The gradients of LayerNorm of silu(gate) * value: the product is computed again, nothing of it was kept."""

from __future__ import annotations

import triton
import triton.language as tl

from .rows_norm import gradient_of_norm
from .rows_swiglu_norm import logistic


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
