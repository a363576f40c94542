# SPDX-License-Identifier: Apache-2.0
"""What recipes of a plain two-tower model share: building it, encoding a batch, and the bounds of its temperature."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clipkit.errors import value_error
from clipkit.recipes.base import BaseRecipe

if TYPE_CHECKING:
    from clipkit.data import Batch

MAX_LOGIT_SCALE = 100.0


class TwoTowerRecipe(BaseRecipe):
    """A model of `clipkit.create_model`, one loss, and a scale that stays in [1, 100]."""

    def defaults(self) -> dict[str, Any]:
        """Fields of the model's configuration that a fresh model starts with, unless the configuration says else."""
        return {}

    def build(self) -> nn.Module:
        """A CLIP model of the configured name."""
        from clipkit.encoders import create_model

        chosen = self.config.model
        defaults = self.defaults() if chosen.pretrained is None else {}
        model: nn.Module = create_model(chosen.name, pretrained=chosen.pretrained, **{**defaults, **chosen.overrides})
        return model

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Normalised features [n, d] of both towers, the logit scale, and the bias if there is one."""
        return dict(self.module(batch.pixels, batch.tokens))

    @torch.no_grad()
    def after_step(self, module: nn.Module) -> None:
        """Keep the scale in [1, 100], as every published CLIP run does.

        The parameter is its own master, whatever the precision: autocast and FSDP2 make 16-bit copies of fp32 weights.
        """
        scale = module.logit_scale
        if not isinstance(scale, Tensor):
            raise TypeError("the model's logit_scale must be a parameter")
        scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))

    def own_loss(self, name: str, chosen_by: str) -> None:
        """Refuse settings of the common losses, for a recipe whose one loss has another setting, `chosen_by`."""
        self.only_loss(name)
        loss = self.config.loss
        if loss.name != "clip" or loss.label_smoothing:
            raise value_error(
                "loss",
                got=f"name {loss.name}, label_smoothing {loss.label_smoothing}",
                want=f"neither, for recipe {self.config.recipe.name}",
                fix=f"remove them: recipe.options.{chosen_by} chooses the loss",
            )

    def only_loss(self, name: str) -> None:
        """Refuse weights for other losses than this recipe's one."""
        unknown = sorted(set(self.weights) - {name})
        if unknown:
            raise value_error("loss.weights", got=", ".join(unknown), want=name, fix="that is this recipe's only loss")
