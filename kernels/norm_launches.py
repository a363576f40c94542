# SPDX-License-Identifier: Apache-2.0
"""How the kernels that hold a row at a time are launched, and how rows are shared out among programs."""

from __future__ import annotations

from typing import Any

import torch
import triton

from .form import FUSION

MOST_PROGRAMS = 1024
"""That add up gradients of weight and bias, each over consecutive rows: eight a multiprocessor on the largest cards.
Their partial sums are two fp32 rows a program, six hundredths of what a batch of 25,000 rows moves.
"""

_ELEMENTS_PER_THREAD = 8
"""16 bytes of 16-bit numbers: one load."""


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
