# SPDX-License-Identifier: Apache-2.0
"""The two phases of LAMB over many tensors; between them a caller whose tensors are shards adds up the norms of its
ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from clipkit.engine.dispatch import choose

TRUST_RULES = ("nvlamb", "paper", "deepspeed")
"""You et al. 2019 is "paper". "nvlamb" leaves tensors without weight decay unscaled. "deepspeed" folds the bias
correction into the rate, after the trust ratio, and clips that to [0.01, 10]. A ratio is 1 where a norm is 0."""


class LambTensors(NamedTuple):
    """Tensors of one device and gradient type, and what one step does with them; lists run over the tensors."""

    weights: list[Tensor]
    """fp32 (float64 for float64 gradients), contiguous, updated in place."""
    gradients: list[Tensor]
    means: list[Tensor]
    """Moving averages of the gradients and, next, of their squares: like the weights."""
    variances: list[Tensor]
    copies: list[Tensor] | None
    """Where the rounded weights go, of the gradients' type; None where the weights are the model's own."""
    steps: list[Tensor]
    """The number of this step, from 1, for each tensor: one fp32 element."""
    rates: list[float | Tensor]
    """Numbers, or 0-D tensors of the same device, which the host does not read."""
    decays: list[float]
    betas: tuple[float, float]
    eps: float
    trust: str
    """One of TRUST_RULES."""
    skip: Tensor | None
    """One fp32 element: not zero where nothing is to be changed. The host does not read it."""
    multiply: Tensor | None
    """One fp32 element: what every gradient is multiplied by."""


def lamb(tensors: LambTensors, *, backend: str = "") -> tuple[Tensor, Callable[[Tensor], None]]:
    """Phase 1 advances the moments. Returns the sums of squares of weights and of updates [tensors, 2] fp32, undefined
    where the step is skipped, and phase 2: called with those sums, added up over shards, it takes each tensor's update,
    scaled by rate and trust ratio, off its weights.
    """
    return choose("lamb", tensors.gradients[0], backend)(tensors)
