# SPDX-License-Identifier: Apache-2.0
"""What bench.evaclip compares: the recipe, and the recipe with one part taken out or exchanged.

The rate of both towers is chosen for every optimizer and every start among TRIES_EACH, on a part of the training set
(bench.evaclip_tries). Patch dropout is switched off in the recipe as it is.
"""

from __future__ import annotations

from bench.fastclip_methods import Method, Settings

RECIPE, PRETRAINING = "evaclip-emoji.yaml", "eva-mim-emoji.yaml"  # ship with clipkit
TRIES_EACH = 2


def _rates(*rates: float) -> dict[str, Settings]:
    return {f"rate {rate:g}": {"optim.lr": rate} for rate in rates}


_LAMB, _ADAMW = _rates(1e-2, 2e-2), _rates(5e-4, 1e-3)
_BEST = "rate 0.01"

VARIANTS = {
    "recipe": Method("the recipe", {}, _LAMB, _BEST),
    "scratch": Method("from scratch", {"model.init.image": "null"}, _LAMB, "rate 0.01"),
    "adamw": Method("AdamW", {"optim.name": "adamw"}, _ADAMW, "rate 0.0005"),
    "patches": Method("all patches", {"model.overrides.vision.patch_dropout": 0.0}, {_BEST: _LAMB[_BEST]}, _BEST),
}
