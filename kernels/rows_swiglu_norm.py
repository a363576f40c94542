# SPDX-License-Identifier: Apache-2.0
"""LayerNorm of silu(gate) * value: one pass over both."""

from __future__ import annotations

import triton
import triton.language as tl

from .rows_norm import normalised


@triton.jit
def swiglu_norm_rows(
    gate,
    value,
    weight,
    bias,
    out,
    mean,
    rstd,
    gate_stride,
    value_stride,
    out_stride,
    eps,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program, one row of WIDTH columns, of which the first HIDDEN are normalised and the others become zero."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    g = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(value + row * value_stride + column, mask=inside, other=0.0).to(tl.float32)
    z, row_mean, row_rstd = normalised(g * logistic(g) * v, inside, HIDDEN, eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + column, z * w + b, mask=column < WIDTH)
    tl.store(mean + row, row_mean)
    tl.store(rstd + row, row_rstd)


@triton.jit
def logistic(x):
    """1 / (1 + e^-x), right at both ends: e^-x may be infinite."""
    return 1.0 / (1.0 + tl.exp(-x))
