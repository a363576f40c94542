# SPDX-License-Identifier: Apache-2.0
"""What the trainer asks of a training method. A recipe is one file of this package with a class named `Recipe`."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clipkit.errors import value_error

if TYPE_CHECKING:
    import torch.distributed as dist

    from clipkit.data import Batch
    from clipkit.train.config import Config


class BaseRecipe(ABC):
    """Builds what is trained and turns a batch into named losses.

    Life of a recipe: `prepare` and `build` once; the trainer wraps the module (DDP, FSDP2) and hands it back by `bind`.
    Then for every step `before_step`; `encode_whole`, or with gradient accumulation `encode` per micro-batch; `losses`;
    and, after the update, `after_step` and `commit`.

    Attributes:
        module: what was bound; calling it runs the wrapper's hooks.
        group: the process group of the global batch, None for a single process.
        weights: factor of each named loss in the total; a name that is absent counts 1.
    """

    module: nn.Module
    group: dist.ProcessGroup | None = None
    weights: Mapping[str, float] = {}

    def __init__(self, config: Config) -> None:
        self.config = config
        self.weights = config.loss.weights

    def prepare(self, *, samples: int, fingerprint: str, steps_per_epoch: int) -> None:  # noqa: B027 - optional
        """Learn of the data set before anything is built; `fingerprint` names its index."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The module to train, on the CPU. Called under a seed that is the same on every rank."""

    def bind(self, module: nn.Module, group: dist.ProcessGroup | None) -> None:
        """Take the wrapped module and the group that a loss is global over."""
        self.module, self.group = module, group

    def model(self, module: nn.Module) -> nn.Module:
        """The CLIP model inside an unwrapped `module`: what is evaluated and exported."""
        return module

    @abstractmethod
    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Outputs of the module for this rank's rows.

        Tensors with dimensions hold one row per sample; 0-D tensors (a scale) are the same for every micro-batch.
        """

    def encode_whole(self, batch: Batch) -> dict[str, Tensor]:
        """`encode` where the batch is encoded at once: what the losses can begin meanwhile may begin."""
        return self.encode(batch)

    @abstractmethod
    def losses(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Named global losses (0-D) of all this rank's rows. Collectives belong here, and only here."""

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Named losses of a batch that fits in memory at once."""
        return self.losses(self.encode_whole(batch), batch)

    def before_step(self, step: int) -> None:  # noqa: B027 - optional
        """Whatever follows a schedule; `step` is counted from 0, over the whole run."""

    @torch.no_grad()
    def after_step(self, module: nn.Module) -> None:
        """Whatever must hold after each optimizer step, such as a clamp; gets the unwrapped module."""
        return None

    def commit(self, skip: Tensor) -> None:  # noqa: B027 - optional
        """Keep what the losses proposed to remember, except where `skip` (0-D, on the device) is not zero."""

    def observations(self, module: nn.Module) -> dict[str, float]:
        """Numbers to log beside the losses; gets the unwrapped module."""
        scale = getattr(self.model(module), "logit_scale", None)
        return {"logit_scale": float(scale.detach().exp())} if isinstance(scale, Tensor) else {}

    def chance_loss(self, global_batch: int) -> float | None:
        """The total loss of a model that knows nothing, if the method has such a figure."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """State beyond the module's own: tensors and plain JSON values.

        A tensor is equal on every rank or a DTensor, and is filled in place when a run resumes.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - optional
        """Take back what `state_dict` gave."""


def create_recipe(config: Config) -> BaseRecipe:
    """The recipe that `config.recipe.name` names.

    Raises:
        ValueError: no such recipe.
    """
    name = config.recipe.name
    package = importlib.import_module("clipkit.recipes")
    known = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base" and m.name[0] != "_")
    if name not in known:
        raise value_error("recipe.name", got=repr(name), want=" or ".join(known), fix="correct the configuration")
    recipe = importlib.import_module(f"clipkit.recipes.{name}").Recipe(config)
    if not isinstance(recipe, BaseRecipe):
        raise TypeError(f"clipkit.recipes.{name}.Recipe must derive from BaseRecipe")
    return recipe
