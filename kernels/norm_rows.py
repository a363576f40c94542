# SPDX-License-Identifier: Apache-2.0
"""LayerNorm of one row in registers, its gradient, and how rows are shared out among programs."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .form import FUSION

MOST_PROGRAMS = 1024
"""That add up gradients of weight and bias, each over consecutive rows: eight a multiprocessor on the largest cards.
Their partial sums are two fp32 rows a program, six hundredths of what a batch of 25,000 rows moves.
"""

_ELEMENTS_PER_THREAD = 8
"""16 bytes of 16-bit numbers: one load."""


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


def row_options(width: int) -> dict[str, Any]:
    """BLOCK and launch options of a program that holds a row at a time."""
    block = triton.next_power_of_2(width)
    warps = min(16, max(1, block // (32 * _ELEMENTS_PER_THREAD)))
    return {"BLOCK": block, "num_warps": warps, **FUSION}


def partial_sums(rows: int, weight: torch.Tensor) -> tuple[int, torch.Tensor]:
    """How many rows a program takes, and memory [2, programs, hidden] for its sums for weight and bias. Their order is
    a matter of the number of rows alone.
    """
    stretch = max(1, triton.cdiv(rows, MOST_PROGRAMS))
    return stretch, weight.new_empty(2, triton.cdiv(rows, stretch), weight.shape[0], dtype=torch.float32)
