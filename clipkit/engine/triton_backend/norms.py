# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.norms` on Triton."""

from __future__ import annotations

from torch import Tensor

from clipkit.engine.norms import Normed


def swiglu_norm(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Normed:
    """See `clipkit.engine.norms.swiglu_norm`."""
    from clipkit.kernels import swiglu_norm as kernel

    return kernel.swiglu_norm(gate, value, weight, bias, eps)


def swiglu_norm_gradients(
    grad: Tensor, gate: Tensor, value: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `clipkit.engine.norms.swiglu_norm_gradients`."""
    from clipkit.kernels import swiglu_norm as kernel

    return kernel.swiglu_norm_gradients(grad, gate, value, weight, mean, rstd)


def add_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `clipkit.engine.norms.add_norm`."""
    from clipkit.kernels import residual_norm as kernel

    return kernel.add_norm(x, branch, weight, bias, eps)


def add_post_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Normed:
    """See `clipkit.engine.norms.add_post_norm`."""
    from clipkit.kernels import residual_norm as kernel

    return kernel.add_post_norm(x, branch, weight, bias, eps)


def norm_gradients(
    grad: Tensor, residual: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `clipkit.engine.norms.norm_gradients`."""
    from clipkit.kernels import residual_norm as kernel

    return kernel.norm_gradients(grad, residual, x, weight, mean, rstd)
