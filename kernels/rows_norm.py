# SPDX-License-Identifier: Apache-2.0
"""LayerNorm of one row in registers, and its gradient."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def normalised(x, inside, size, eps):
    """(z, mean, rstd) of a row, z = (x - mean) rstd, zero outside. The variance is that of differences from the mean:
    sums of squares would lose it where the mean is large.
    """
    mean = tl.sum(tl.where(inside, x, 0.0)) / size
    away = tl.where(inside, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(away * away) / size + eps)
    return away * rstd, mean, rstd


@triton.jit
def gradient_of_norm(g, z, rstd, size):
    """The gradient of a row, for g = weight times that of its LayerNorm; g and z are zero outside."""
    return rstd * (g - tl.sum(g) / size - z * (tl.sum(g * z) / size))
