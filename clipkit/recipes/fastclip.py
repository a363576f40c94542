# SPDX-License-Identifier: Apache-2.0
"""FastCLIP (arXiv 2407.01445), SogCLR and iSogCLR: global contrastive losses with an estimate kept for every sample."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from clipkit.errors import value_error
from clipkit.losses import FastCLIPLoss
from clipkit.recipes._towers import TwoTowerRecipe

if TYPE_CHECKING:
    import torch.distributed as dist

    from clipkit.data import Batch
    from clipkit.train.config import Config

_NOT_OPTIONS = {"self", "num_samples", "index", "group", "backend"}
_PAYLOADS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Recipe(TwoTowerRecipe):
    """`recipe.options` are `FastCLIPLoss`'s arguments by name, and `gamma_per`: "epoch", as published, or "step".

    The temperature of v0 and v3 is the model's logit scale, with the rate `optim.lr_scale` and the rule
    `optim.scale_schedule`; v1 and sogclr keep it where the model starts (model.overrides.init_logit_scale).
    """

    loss: FastCLIPLoss

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.own_loss("fastclip", chosen_by="version")
        options = dict(config.recipe.options)
        self._gamma_per: Literal["epoch", "step"] = options.pop("gamma_per", "epoch")
        if self._gamma_per not in ("epoch", "step"):
            raise value_error(
                "recipe.options.gamma_per", got=repr(self._gamma_per), want="'epoch' or 'step'", fix="choose one"
            )
        self._options = _checked(options)

    def prepare(self, *, samples: int, fingerprint: str, steps_per_epoch: int) -> None:
        """Size the estimates for the data set, whose index they belong to from now on."""
        self._samples, self._fingerprint, self._steps_per_epoch = samples, fingerprint, steps_per_epoch

    def bind(self, module: nn.Module, group: dist.ProcessGroup | None) -> None:
        """Take the wrapped module, and make the loss for its ranks on its device."""
        super().bind(module, group)
        self.loss = FastCLIPLoss(self._samples, **self._options, index=self._fingerprint, group=group)
        self.loss.table(next(module.parameters()).device)

    def before_step(self, step: int) -> None:
        """Set γ: constant within an epoch as published, or moving with every step."""
        epoch = step // self._steps_per_epoch if self._gamma_per == "epoch" else step / self._steps_per_epoch
        self.loss.set_epoch(epoch)

    def encode_whole(self, batch: Batch) -> dict[str, Tensor]:
        """`encode`, with the estimates and the image features on their way while the towers compute."""
        self.loss.begin(batch.ids)
        return dict(self.module(batch.pixels, batch.tokens, image_ready=self.loss.image_ready))

    def losses(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"fastclip": loss}: the estimated objective, global, equal on every rank."""
        loss = self.loss(features["image_features"], features["text_features"], features["logit_scale"], batch.ids)
        return {"fastclip": loss}

    def commit(self, skip: Tensor) -> None:
        """Keep the step's estimates."""
        self.loss.commit(skip)

    def observations(self, module: nn.Module) -> dict[str, float]:
        """The model's numbers, γ, and the mean of the last batch's individual temperatures."""
        found = {**super().observations(module), "gamma": self.loss.gamma}
        mean = self.loss.mean_temperature
        return found if mean is None else {**found, "tau": float(mean)}

    def state_dict(self) -> dict[str, Any]:
        """The estimates, and what they belong to."""
        return {**self.loss.table().tensors(), "loss": self.loss.get_extra_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check what the estimates belong to; they themselves were filled in place."""
        self.loss.set_extra_state(state["loss"])


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """Options as arguments of `FastCLIPLoss`; tried out at once, so that a mistake is found before data are read."""
    known = sorted(set(inspect.signature(FastCLIPLoss.__init__).parameters) - _NOT_OPTIONS)
    unknown = sorted(set(options) - set(known))
    if unknown:
        want = ", ".join([*known, "gamma_per"])
        raise value_error("recipe.options", got=", ".join(unknown), want=want, fix="correct the name")
    if isinstance(options.get("payload"), str):
        if options["payload"] not in _PAYLOADS:
            want = "one of " + ", ".join(_PAYLOADS)
            raise value_error("recipe.options.payload", got=repr(options["payload"]), want=want, fix="choose one")
        options["payload"] = _PAYLOADS[options["payload"]]
    if "tau_betas" in options:
        options["tau_betas"] = tuple(options["tau_betas"])
    FastCLIPLoss(1, **options)
    return options
