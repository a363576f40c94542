# SPDX-License-Identifier: Apache-2.0
"""The learning rate of each parameter group at a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from clipkit.errors import value_error
from clipkit.optim import learning_rate, step_threshold_rate
from clipkit.train.config import OptimConfig


def group_rate(group: Mapping[str, Any], step: int, settings: OptimConfig, total_steps: int) -> float | Tensor:
    """The rate that `group` (see clipkit.optim.parameter_groups) trains with at step number `step`, counted from 0.

    A 0-D tensor for the scale's group under step_thresh, a float otherwise.

    Raises:
        ValueError: step_thresh, and the group does not train exactly one logit_scale.
    """
    shape, rule = settings.schedule.name, settings.scale_schedule
    if group.get("group") == "scale":
        if rule.name == "constant":
            return float(group["peak_lr"])
        if rule.name == "step_thresh":
            scale = logit_scale_of(group)
            return step_threshold_rate(scale, peak=group["peak_lr"], threshold=rule.threshold, factor=rule.factor)
        shape = shape if rule.name == "shared" else "cosine"
    return group.get("layer_scale", 1.0) * _scheduled(group["peak_lr"], shape, step, settings, total_steps)


def main_rate(step: int, settings: OptimConfig, total_steps: int) -> float:
    """The rate to show at step number `step`: the image tower's before layer decay, which is everybody's unless a tower
    has its own."""
    peak = settings.lr if settings.image.lr is None else settings.image.lr
    return _scheduled(peak, settings.schedule.name, step, settings, total_steps)


def _scheduled(peak: float, shape: str, step: int, settings: OptimConfig, total_steps: int) -> float:
    schedule = settings.schedule
    return learning_rate(
        step,
        total_steps=total_steps,
        peak=peak,
        warmup_steps=schedule.warmup_steps,
        lr_min=schedule.lr_min,
        shape=shape,
    )


def logit_scale_of(group: Mapping[str, Any]) -> nn.Parameter:
    """The one trained logit_scale, whose value step_thresh follows."""
    named = zip(group["names"], group["params"], strict=True)
    found = {name: parameter for name, parameter in named if name.rpartition(".")[2] == "logit_scale"}
    if len(found) != 1:
        raise value_error(
            "optim.scale_schedule.name",
            got=f"step_thresh with {', '.join(found) or 'no trained logit_scale'}",
            want="one trained logit_scale to follow",
            fix="use shared or constant",
        )
    return next(iter(found.values()))
