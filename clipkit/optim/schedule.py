# SPDX-License-Identifier: Apache-2.0
"""Learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math


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
