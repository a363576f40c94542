# SPDX-License-Identifier: Apache-2.0
"""Plain CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023): one contrastive loss over the global batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from clipkit.errors import value_error
from clipkit.recipes._towers import TwoTowerRecipe

if TYPE_CHECKING:
    from clipkit.data import Batch
    from clipkit.train.config import Config

# SigLIP, section 3.2: t' = log 10 and b = -10 keep the first steps from correcting the many negatives all at once.
_SIGLIP_INIT = {"init_logit_scale": math.log(10.0), "init_logit_bias": -10.0}


class Recipe(TwoTowerRecipe):
    """loss.name chooses clip or siglip."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.recipe.options:
            raise value_error(
                "recipe.options",
                got=dict(config.recipe.options),
                want="nothing for recipe contrastive",
                fix="its settings are under `loss:`",
            )
        self.only_loss("contrastive")

    def defaults(self) -> dict[str, Any]:
        """SigLIP's scale and bias where its loss is chosen."""
        return _SIGLIP_INIT if self.config.loss.name == "siglip" else {}

    def build(self) -> nn.Module:
        """A CLIP model of the configured name."""
        model = super().build()
        if self.config.loss.name == "siglip" and getattr(model, "logit_bias", None) is None:
            raise value_error(
                "model",
                got=f"{self.config.model.name} without a logit bias",
                want="a model with one for loss.name=siglip",
                fix="set model.overrides.init_logit_bias=-10",
            )
        return model

    def losses(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"contrastive": loss}, the global value, equal on every rank."""
        from clipkit import functional

        image, text, scale = features["image_features"], features["text_features"], features["logit_scale"]
        if self.config.loss.name == "siglip":
            loss = functional.siglip_loss(image, text, scale, features["logit_bias"], group=self.group)
        else:
            smoothing = self.config.loss.label_smoothing
            loss = functional.clip_loss(image, text, scale, label_smoothing=smoothing, group=self.group)
        return {"contrastive": loss}

    def chance_loss(self, global_batch: int) -> float | None:
        """Cross-entropy of a uniform guess, ln(N); the sigmoid loss has no such figure."""
        return math.log(global_batch) if self.config.loss.name == "clip" else None
