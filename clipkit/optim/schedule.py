# SPDX-License-Identifier: Apache-2.0
"""Learning rates as pure functions of the step, or of a weight, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def learning_rate(
    step: int, *, total_steps: int, peak: float, warmup_steps: int = 0, lr_min: float = 0.0, shape: str = "cosine"
) -> float:
    """The rate that step number `step` (counted from 0) trains with.

    Warm-up is linear and its first step is already above zero: `peak * (step + 1) / warmup_steps`. The cosine then
    falls from `peak` to `lr_min` over the remaining steps (Loshchilov & Hutter, SGDR, eq. 5, one period).

    Raises:
        ValueError: an unknown shape.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if shape == "constant":
        return peak
    if shape != "cosine":
        raise ValueError(f"shape: got {shape!r}; want 'cosine' or 'constant'; correct optim.schedule.name")
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return lr_min + (peak - lr_min) * 0.5 * (1.0 + math.cos(math.pi * progress))


def step_threshold_rate(logit_scale: Tensor, *, peak: float, threshold: float = 0.03, factor: float = 1 / 3) -> Tensor:
    """FastCLIP v3's rate for the temperature: `peak`, times `factor` while tau = exp(-logit_scale) <= `threshold`.

    It follows the current value, so it rises again when tau does. 0-D fp32 on logit_scale's device: the host does not
    learn which of the two it is, since waiting for a GPU at each step would cost more than this saves. An optimizer
    takes such a rate where it has arithmetic on tensors (torch's with fused=True, clipkit's own).
    """
    # Compared as logarithms: exp and its rounding would decide for a tau that is exactly the threshold.
    cold = logit_scale.detach() >= -math.log(threshold)
    rate = torch.full((), peak, dtype=torch.float32, device=logit_scale.device)
    return rate.masked_fill_(cold.reshape(()), peak * factor)
