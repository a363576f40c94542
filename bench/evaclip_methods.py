# SPDX-License-Identifier: Apache-2.0
"""What bench.evaclip compares: the recipe, and the recipe with one part taken out or exchanged.

Rates and layer decay are chosen for every optimizer and every start among TRIES_EACH tries, on a part of the training
set (bench.evaclip_tries). Patch dropout is switched off in the recipe as it is.
"""

from __future__ import annotations

from bench.fastclip_methods import Method, Settings

RECIPE, PRETRAINING = "evaclip-emoji.yaml", "eva-mim-emoji.yaml"  # ship with clipkit
TRIES_EACH = 4


def _grid(rates: tuple[float, ...]) -> dict[str, Settings]:
    """Rates of both towers, and two layer decays of the image tower."""
    return {
        f"rate {rate:g}, layer decay {decay:g}": {"optim.lr": rate, "optim.image.layer_decay": decay}
        for rate in rates
        for decay in (0.75, 1.0)
    }


_LAMB, _ADAMW = _grid((1e-2, 3e-2)), _grid((1e-3, 3e-3))
_SCRATCH = {"model.init.image": "null"}
_BEST = "rate 0.01, layer decay 0.75"

VARIANTS = {
    "recipe": Method("the recipe", {}, _LAMB, _BEST),
    "scratch": Method("from scratch", _SCRATCH, _LAMB, "rate 0.01, layer decay 1"),
    "adamw": Method("AdamW", {"optim.name": "adamw"}, _ADAMW, "rate 0.001, layer decay 1"),
    "patches": Method("all patches", {"model.overrides.vision.patch_dropout": 0.0}, {_BEST: _LAMB[_BEST]}, _BEST),
}
