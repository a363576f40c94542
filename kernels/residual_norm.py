# SPDX-License-Identifier: Apache-2.0
"""Residual sums with the LayerNorm that follows them, or that their branch passes through first: one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .form import on_device_of, unit_inner_stride
from .norm_rows import normalised, row_options


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


def add_norm(
    x: torch.Tensor, branch: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x + branch in x's dtype, its LayerNorm in the branch's, mean, rstd) for [rows, width]; statistics fp32 [rows]."""
    total, normed = x.new_empty(x.shape), branch.new_empty(branch.shape)
    return total, normed, *_launch(x, branch, weight, bias, eps, total, normed)


def add_post_norm(
    x: torch.Tensor, branch: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x + LayerNorm(branch) in x's dtype, mean, rstd) for [rows, width]; statistics fp32 [rows]."""
    out = x.new_empty(x.shape)
    return out, *_launch(x, branch, weight, bias, eps, out, None)


def _launch(
    x: torch.Tensor,
    branch: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    total: torch.Tensor,
    normed: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    x, branch = unit_inner_stride(x), unit_inner_stride(branch)
    rows, width = x.shape
    mean = x.new_empty(rows, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if rows:
        with on_device_of(x):
            residual_norm_rows[(rows,)](
                x,
                branch,
                weight.contiguous(),
                bias.contiguous(),
                total,
                total if normed is None else normed,
                mean,
                rstd,
                x.stride(0),
                branch.stride(0),
                eps,
                WIDTH=width,
                POST=normed is None,
                **row_options(width),
            )
    return mean, rstd
