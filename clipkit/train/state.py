# SPDX-License-Identifier: Apache-2.0
"""The position of a run, and what a checkpoint holds besides the weights."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clipkit.errors import value_error
from clipkit.train.config import Config, parse_config
from clipkit.train.typed import to_plain
from clipkit.train.zero import local_part

if TYPE_CHECKING:
    from clipkit.recipes import BaseRecipe

log = logging.getLogger(__name__)

FORMAT = 1
# A run that changed one of these would not be the same run: other data order, other objective, other weights.
_FIXED = (
    "train.global_batch",
    "train.seed",
    "model.name",
    "model.overrides",
    "recipe.name",
    "recipe.options.version",
    "recipe.options.target",
    "loss.name",
    "optim.name",
)


@dataclass
class Position:
    """How far a run is; with the configuration it determines data, learning rate and random numbers of what follows.

    Attributes:
        step: optimizer steps done, which is also the number of the next global batch.
        seconds: time in the loop, over all starts.
        skipped_samples: broken samples met so far, over all ranks and starts.
        skipped_updates: fp16 updates left out because gradients overflowed.
    """

    step: int = 0
    seconds: float = 0.0
    skipped_samples: int = 0
    skipped_updates: int = 0


def training_tensors(module: nn.Module, optimizer: torch.optim.Optimizer, recipe: BaseRecipe) -> dict[str, Tensor]:
    """Every tensor of a run under a stable name, sharing memory with the live ones, so that loading fills them.

    Args:
        module: unwrapped.
        optimizer: its groups carry "names" (see clipkit.optim.parameter_groups). Of a split one, this rank's part.
        recipe: its tensors are included.
    """
    part = local_part(optimizer)
    _materialise(part)
    tensors = {f"model.{name}": value.detach() for name, value in module.state_dict().items()}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in part.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
    tensors.update({f"recipe.{k}": v for k, v in recipe.state_dict().items() if isinstance(v, Tensor)})
    return tensors


def plain_state(
    position: Position,
    config: Config,
    recipe: BaseRecipe,
    scaler: torch.amp.GradScaler,
    *,
    fingerprint: str,
    samples: int,
    world_size: int,
    model_config: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON part of a checkpoint. There is no generator state: random numbers are a function of the step."""
    return {
        "format": FORMAT,
        "position": dataclasses.asdict(position),
        "scaler": scaler.state_dict(),
        "recipe": {k: v for k, v in recipe.state_dict().items() if not isinstance(v, Tensor)},
        "dataset": {"fingerprint": fingerprint, "samples": samples},
        "world_size": world_size,
        "config": to_plain(config),
        "model_config": dict(model_config),
    }


def check_resumable(state: Mapping[str, Any], config: Config, *, fingerprint: str, samples: int) -> list[str]:
    """Refuse to continue a different run; returns the harmless differences as `key: old -> new`.

    Raises:
        ValueError: another checkpoint format, another data set, or another setting that the state depends on.
    """
    if state.get("format") != FORMAT:
        raise value_error(
            "checkpoint",
            got=f"format {state.get('format')}",
            want=f"format {FORMAT}",
            fix="resume with the clipkit version that wrote it",
        )
    # parsed anew: a setting that a newer clipkit added has its default in an old checkpoint too
    old, new = flat_settings(to_plain(parse_config(state["config"]))), flat_settings(to_plain(config))
    changed = {key: (old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)}
    for fixed in _FIXED:
        for key, (before, after) in changed.items():
            if key == fixed or key.startswith(fixed + "."):
                raise value_error(
                    key,
                    got=f"{after!r}, while the checkpoint was made with {before!r}",
                    want="the same",
                    fix="set it back, or start another run with --out",
                )
    dataset = state["dataset"]
    if dataset["fingerprint"] != fingerprint:
        raise value_error(
            "data.train",
            got=f"{config.data.train} with {samples} samples, fingerprint {fingerprint}",
            want=f"the set the checkpoint was made with: {dataset['samples']} samples, fingerprint "
            f"{dataset['fingerprint']}",
            fix="restore those shards, or start another run with --out",
        )
    return [f"{key}: {before} -> {after}" for key, (before, after) in changed.items()]


def flat_settings(tree: Any, path: str = "") -> dict[str, Any]:
    """Nested plain values as dotted keys."""
    if isinstance(tree, Mapping) and tree:
        return {k: v for key, item in tree.items() for k, v in flat_settings(item, f"{path}.{key}".lstrip(".")).items()}
    return {path: tree}


@torch.no_grad()
def _materialise(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer allocate the state that it does not have yet, by a step that changes nothing: zero gradients
    at rate zero, without weight decay, which some optimizers keep in their momentum.

    Parameters that have their state have no gradient meanwhile, so that it stays as it is.
    """
    groups = optimizer.param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    fresh = [parameter for parameter in parameters if not optimizer.state.get(parameter)]
    if not fresh:
        return
    optimizer.zero_grad(set_to_none=True)
    settings = [(group["lr"], group["weight_decay"]) for group in groups]
    for group in groups:
        group.update(lr=0.0, weight_decay=0.0)
    for parameter in fresh:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, (rate, decay) in zip(groups, settings, strict=True):
        group.update(lr=rate, weight_decay=decay)
    for parameter in fresh:
        if "step" in optimizer.state[parameter]:
            optimizer.state[parameter]["step"].zero_()  # as before the first step
