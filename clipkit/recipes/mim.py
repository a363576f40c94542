# SPDX-License-Identifier: Apache-2.0
"""Masked image modelling, with which EVA's image towers begin (Fang et al. 2022, "EVA"; 2023, "EVA-02").

The tower sees each picture with 40 % of its patches hidden and says what was there. What comes out is an ordinary run
whose image tower another run can start from (`model.init.image`). The rest of its model is as it was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.encoders import CLIP
from clipkit.encoders.config import nearest
from clipkit.encoders.masking import block_masks, hidden_patches
from clipkit.errors import value_error
from clipkit.parallel import mean_over_ranks
from clipkit.recipes._masked import (
    MaskedConfig,
    MaskedModel,
    image_tower,
    load_teacher,
    normalised_patches,
    patch_features,
    pick,
)
from clipkit.recipes._towers import TwoTowerRecipe

if TYPE_CHECKING:
    import torch.distributed as dist

    from clipkit.data import Batch
    from clipkit.train.config import Config


@dataclass(frozen=True)
class Options:
    """`recipe.options`.

    target: "pixels", those of each hidden patch, normalised (He et al. 2022, "MAE"), by the mean squared difference; or
        "features", what a trained CLIP has for the patch in the space that it shares with text, by the negative cosine,
        as EVA is trained.
    teacher: that CLIP: a run's folder, or a checkpoint file of the model `teacher_model`. It sees the whole picture.
    mask_ratio: the share of the patches that is hidden.
    """

    target: str = "pixels"
    teacher: str | None = None
    teacher_model: str | None = None
    mask_ratio: float = 0.4

    def __post_init__(self) -> None:
        if self.target not in ("pixels", "features"):
            raise value_error(
                "recipe.options.target", got=repr(self.target), want="'pixels' or 'features'", fix="choose one"
            )
        if (self.target == "features") != (self.teacher is not None):
            raise value_error(
                "recipe.options.teacher",
                got=f"{self.teacher!r} with target {self.target}",
                want="a teacher for target features, and for no other",
                fix="name a run's folder or a checkpoint file, or use target pixels",
            )
        if not 0 < self.mask_ratio < 1:
            raise value_error("recipe.options.mask_ratio", got=self.mask_ratio, want="in (0, 1)", fix="EVA has 0.4")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """From the configuration's plain values; ValueError names one that is unknown."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise value_error("recipe.options", got=repr(name), want=", ".join(known), fix=nearest(name, known))
        return cls(**values)


class Recipe(TwoTowerRecipe):
    """The loss of a step is the mean over all pictures of the batch; for `recipe.options` see `Options`.

    Micro-batches are encoded twice, as for any recipe, although a mean over pictures could do with once.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.own_loss("masked", chosen_by="target")
        self._options = Options.of(config.recipe.options)
        self._teacher: CLIP | None = None

    def build(self) -> nn.Module:
        """A `MaskedModel` around the configured model."""
        clip = super().build()
        assert isinstance(clip, CLIP)
        self._vision = image_tower(clip).config
        width = 3 * self._vision.patch_size**2
        if self._options.teacher is not None:
            self._teacher = load_teacher(self._options.teacher, self._options.teacher_model, clip.config)
            width = self._teacher.config.embed_dim
        return MaskedModel(MaskedConfig(clip.config, width), clip)

    def bind(self, module: nn.Module, group: dist.ProcessGroup | None) -> None:
        """Take the wrapped module; the teacher goes where it is, in its weights' precision."""
        super().bind(module, group)
        if self._teacher is not None:
            weight = next(module.parameters())
            self._teacher.to(device=weight.device, dtype=weight.dtype)

    def model(self, module: nn.Module) -> nn.Module:
        """The CLIP inside."""
        return module.get_submodule("clip")

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """{"masked": [n]}, the loss of each picture."""
        hidden = self.hidden(batch)
        said = self.module(batch.pixels, hidden)
        said = said.to(torch.promote_types(said.dtype, torch.float32))
        wanted = pick(self._targets(batch.pixels), hidden).to(said.dtype)
        if self._teacher is None:
            return {"masked": (said - wanted).square().mean(dim=(1, 2))}
        return {"masked": -F.cosine_similarity(said, wanted, dim=2).mean(dim=1)}

    def losses(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """{"masked": the mean over the pictures of all ranks}, equal on every rank."""
        return {"masked": mean_over_ranks(features["masked"], self.group)}

    def hidden(self, batch: Batch) -> Tensor:
        """The patches that are hidden of each picture, int64 [n, count]: a function of (seed, step, sample)."""
        grid = self._vision.grid
        count = hidden_patches(grid**2, self._options.mask_ratio)
        return block_masks(batch.ids, grid=grid, count=count, seed=self.config.train.seed, step=batch.step)

    def after_step(self, module: nn.Module) -> None:
        """Nothing: the temperature is frozen."""

    def observations(self, module: nn.Module) -> dict[str, float]:
        """Nothing beside the loss: the temperature is frozen."""
        return {}

    def _targets(self, pixels: Tensor) -> Tensor:
        if self._teacher is None:
            return normalised_patches(pixels, self._vision.patch_size)
        return patch_features(self._teacher, pixels)
