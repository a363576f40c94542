# SPDX-License-Identifier: Apache-2.0
"""What bench.fastclip compares: seven losses, each a few settings of one recipe, and what was tried for each.

Model, data, order of the samples, batch, steps, optimizer, the towers' learning rate and its schedule are the recipe's
for all. What a method has of its own was chosen among TRIES_EACH tries, on a part of the training set
(bench.fastclip_tries).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

RECIPE = "fastclip-emoji.yaml"  # ships with clipkit
TRIES_EACH = 4
Settings = Mapping[str, str | float]


@dataclass(frozen=True)
class Method:
    """A loss. `fixed` makes it what it is; `tries` are what was tried on top, by name; `chosen` is the best of them."""

    title: str
    fixed: Settings
    tries: Mapping[str, Settings]
    chosen: str

    def words(self, name: str | None = None) -> list[str]:
        """What follows `--set`, for one of the tries or the chosen one."""
        return [f"{key}={value}" for key, value in {**self.fixed, **self.tries[name or self.chosen]}.items()]


def _start(tau: float) -> Settings:
    """The model's temperature at the start, and for good where nothing moves it."""
    return {"model.overrides.init_logit_scale": round(math.log(1 / tau), 6)}


def _own(version: str, **options: float) -> Settings:
    return {"recipe.options.version": version, **{f"recipe.options.{key}": value for key, value in options.items()}}


_AS_THE_REST = {"optim.scale_schedule.name": "shared"}  # the temperature's rate falls with the model's
_FAST = {"optim.lr_scale": 5e-3}  # as far in some hundred steps as the published 2e-4 in many thousand


def _grid(first: Mapping[str, Settings], second: Mapping[str, Settings]) -> dict[str, Settings]:
    """Every one of the first with every one of the second."""
    return {f"{a}, {b}": {**first[a], **second[b]} for a in first for b in second}


def _values(title: str, key: str, *values: float) -> dict[str, Settings]:
    return {f"{title} {value:g}": {key: value} for value in values}


_STARTS = {f"tau {tau}": _start(tau) for tau in (0.07, 0.04)}
_RATES = _values("rate of tau", "optim.lr_scale", 1e-3, 1e-2)
_RHOS = _values("rho", "recipe.options.rho", 1.5, 3.0)
_COSINE = _values("gamma", "recipe.options.gamma", 0.2, 0.6)
_CONSTANT = _values("gamma", "recipe.options.gamma", 0.3, 0.7)
_INDIVIDUAL = {"temperature": 0.07, "tau_lr": 0.01}

METHODS = {
    "openclip": Method(
        "OpenCLIP",
        {"recipe.name": "contrastive", "recipe.options": "{}", **_AS_THE_REST},
        _grid(_STARTS, _RATES),
        "tau 0.07, rate of tau 0.01",
    ),
    "sogclr": Method("SogCLR", _own("sogclr"), _grid(_STARTS, _CONSTANT), "tau 0.04, gamma 0.7"),
    "v0": Method("FastCLIP v0", {**_own("v0"), **_AS_THE_REST}, _grid(_RATES, _COSINE), "rate of tau 0.001, gamma 0.6"),
    "v1": Method("FastCLIP v1", _own("v1"), _grid(_STARTS, _COSINE), "tau 0.04, gamma 0.6"),
    "v2": Method("FastCLIP v2", _own("v2", **_INDIVIDUAL), _grid(_RHOS, _COSINE), "rho 1.5, gamma 0.6"),
    "v3": Method("FastCLIP v3", {**_own("v3"), **_FAST}, _grid(_RHOS, _COSINE), "rho 1.5, gamma 0.6"),
    "isogclr": Method("iSogCLR", _own("isogclr", **_INDIVIDUAL), _grid(_RHOS, _CONSTANT), "rho 1.5, gamma 0.7"),
}

CONTROLS = {
    "openclip-warm": Method(
        "OpenCLIP, τ kept at 0.16",
        {**METHODS["openclip"].fixed, **_start(0.16), "optim.lr_scale": 0},
        {"tau 0.16": {}},
        "tau 0.16",
    ),
}
"""Not part of the comparison: OpenCLIP's loss at the temperature that v3 ended at, run after it was seen."""
