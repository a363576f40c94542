# SPDX-License-Identifier: Apache-2.0
"""Residual sums with the LayerNorm that follows them, or that their branch passes through first: one pass."""

from __future__ import annotations

import triton
import triton.language as tl

from .rows_norm import normalised


@triton.jit
def residual_norm_rows(
    x,
    branch,
    weight,
    bias,
    total,
    normed,
    mean,
    rstd,
    x_stride,
    branch_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    POST: tl.constexpr,
):
    """One program, one row: total = x + branch and normed = LayerNorm(total), of the total as it is stored; POST: total
    = x + LayerNorm(branch) alone.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    to = row * WIDTH + column
    addend = tl.load(branch + row * branch_stride + column, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if not POST:
        rounded = (residual + addend).to(total.dtype.element_ty)
        tl.store(total + to, rounded, mask=inside)
        addend = rounded.to(tl.float32)
    z, row_mean, row_rstd = normalised(addend, inside, WIDTH, eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    if POST:
        tl.store(total + to, residual + (z * w + b), mask=inside)
    else:
        tl.store(normed + to, z * w + b, mask=inside)
    tl.store(mean + row, row_mean)
    tl.store(rstd + row, row_rstd)
