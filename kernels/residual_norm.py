# SPDX-License-Identifier: Apache-2.0
"""Residual sums with LayerNorms and their gradients: the launch code around kernels/rows_residual_norm.py and
rows_norm_gradients.py.
"""

from __future__ import annotations

import torch

from .form import on_device_of, unit_inner_stride
from .norm_launches import partial_sums, row_options
from .rows_norm_gradients import norm_gradient_rows
from .rows_residual_norm import residual_norm_rows


def add_norm(
    x: torch.Tensor, branch: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x + branch in x's dtype, its LayerNorm in the branch's, mean, rstd) for [rows, width]; these two fp32 [rows]."""
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


def norm_gradients(
    grad: torch.Tensor,
    residual: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of x [rows, width] (plus `residual`), in its dtype, and of weight and bias [width], fp32."""
    grad, x, d_x = unit_inner_stride(grad), unit_inner_stride(x), x.new_empty(x.shape)
    past = grad if residual is None else unit_inner_stride(residual)
    rows, width = x.shape
    stretch, partials = partial_sums(rows, weight)
    if rows:
        with on_device_of(x):
            norm_gradient_rows[(partials.shape[1],)](
                grad,
                past,
                x,
                weight.contiguous(),
                mean,
                rstd,
                d_x,
                partials,
                rows,
                stretch,
                grad.stride(0),
                past.stride(0),
                x.stride(0),
                WIDTH=width,
                RESIDUAL=residual is not None,
                **row_options(width),
            )
    return d_x, partials[0].sum(0), partials[1].sum(0)
