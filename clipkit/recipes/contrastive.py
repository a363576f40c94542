# SPDX-License-Identifier: Apache-2.0
"""Plain CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023): one contrastive loss over the global batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clipkit.errors import value_error
from clipkit.recipes.base import BaseRecipe

if TYPE_CHECKING:
    from clipkit.data import Batch
    from clipkit.train.config import Config

MAX_LOGIT_SCALE = 100.0
# SigLIP, section 3.2: t' = log 10 and b = -10 keep the first steps from correcting the many negatives all at once.
_SIGLIP_INIT = {"init_logit_scale": math.log(10.0), "init_logit_bias": -10.0}


class Recipe(BaseRecipe):
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
        unknown = sorted(set(config.loss.weights) - {"contrastive"})
        if unknown:
            raise value_error(
                "loss.weights", got=", ".join(unknown), want="contrastive", fix="that is this recipe's only loss"
            )

    def build(self) -> nn.Module:
        """A CLIP model of the configured name."""
        from clipkit.encoders import create_model

        chosen = self.config.model
        defaults = _SIGLIP_INIT if self.config.loss.name == "siglip" and chosen.pretrained is None else {}
        model: nn.Module = create_model(chosen.name, pretrained=chosen.pretrained, **{**defaults, **chosen.overrides})
        if self.config.loss.name == "siglip" and getattr(model, "logit_bias", None) is None:
            raise value_error(
                "model",
                got=f"{chosen.name} without a logit bias",
                want="a model with one for loss.name=siglip",
                fix="set model.overrides.init_logit_bias=-10",
            )
        return model

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Normalised features [n, d] of both towers, the logit scale, and the bias if there is one."""
        return dict(self.module(batch.pixels, batch.tokens))

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

    @torch.no_grad()
    def after_step(self, module: nn.Module) -> None:
        """Keep the scale in [1, 100], as every published CLIP run does."""
        scale = module.logit_scale
        if not isinstance(scale, Tensor):
            raise TypeError("the model's logit_scale must be a parameter")
        scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))

    def chance_loss(self, global_batch: int) -> float | None:
        """Cross-entropy of a uniform guess, ln(N); the sigmoid loss has no such figure."""
        return math.log(global_batch) if self.config.loss.name == "clip" else None
