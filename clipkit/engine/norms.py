# SPDX-License-Identifier: Apache-2.0
"""LayerNorm together with what comes right before it in a transformer block: a gated activation, or a residual sum.

Everything is [rows, width], rows of unit stride inside. Statistics (mean and 1 / sqrt(variance + eps) of every row) and
the gradients of weight and bias are fp32, float64 for float64 rows; nothing else that is computed is kept.
"""

from __future__ import annotations

from torch import Tensor

from clipkit.engine.dispatch import choose

Normed = tuple[Tensor, Tensor, Tensor]
"""What was normalised, the means and the inverse deviations [rows]."""


def swiglu_norm(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backend: str) -> Normed:
    """LayerNorm of silu(gate) * value over the first len(weight) columns; the columns beyond come out as zero."""
    return choose("swiglu_norm", gate, backend)(gate, value, weight, bias, eps)


def swiglu_norm_gradients(
    grad: Tensor, gate: Tensor, value: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, *, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of gate, value, weight and bias; zero in the columns beyond."""
    return choose("swiglu_norm_gradients", gate, backend)(grad, gate, value, weight, mean, rstd)


def add_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + branch in x's type, its LayerNorm in the branch's type, mean, rstd."""
    return choose("add_norm", x, backend)(x, branch, weight, bias, eps)


def add_post_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backend: str) -> Normed:
    """x + LayerNorm(branch) in x's type."""
    return choose("add_post_norm", x, backend)(x, branch, weight, bias, eps)


def norm_gradients(
    grad: Tensor, residual: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, *, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x (plus `residual` [rows, width], what reaches x past the norm, if any), weight and bias, for rows x that were
    normalised and the gradient of their LayerNorm.
    """
    return choose("norm_gradients", x, backend)(grad, residual, x, weight, mean, rstd)
