# SPDX-License-Identifier: Apache-2.0
"""The gradients of LayerNorm, with what reaches its input past it added on the way."""

from __future__ import annotations

import triton
import triton.language as tl

from .rows_norm import gradient_of_norm


@triton.jit
def norm_gradient_rows(
    grad,
    residual,
    x,
    weight,
    mean,
    rstd,
    d_x,
    partials,
    rows,
    stretch,
    grad_stride,
    residual_stride,
    x_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """One program, `stretch` consecutive rows; their sums for weight and bias go to partials[0 and 1, program]."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    for_weight = tl.zeros((BLOCK,), tl.float32)
    for_bias = tl.zeros((BLOCK,), tl.float32)
    for row in range(program * stretch, tl.minimum((program + 1) * stretch, rows)):
        line = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        incoming = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
        row_mean, row_rstd = tl.load(mean + row), tl.load(rstd + row)
        z = tl.where(inside, (line - row_mean) * row_rstd, 0.0)
        for_weight += incoming * z
        for_bias += incoming
        d = gradient_of_norm(incoming * w, z, row_rstd, WIDTH)
        if RESIDUAL:
            d += tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_x + row * WIDTH + column, d, mask=inside)
    to = program * WIDTH + column
    tl.store(partials + to, for_weight, mask=inside)
    tl.store(partials + tl.num_programs(0).to(tl.int64) * WIDTH + to, for_bias, mask=inside)
