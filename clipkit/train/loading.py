# SPDX-License-Identifier: Apache-2.0
"""A trained model out of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipkit.errors import value_error
from clipkit.train.build import CHECKPOINTS
from clipkit.train.checkpoint import Checkpoint, complete_checkpoints
from clipkit.train.config import Config, parse_config

if TYPE_CHECKING:
    from clipkit.data.tokens import Tokenizer
    from clipkit.encoders import CLIP


def load_run(
    run_dir: str | Path, *, device: torch.device | str = "cpu", step: int | None = None
) -> tuple[CLIP, Config, Tokenizer]:
    """The model of a run's newest complete checkpoint (or of the one after `step` steps), in eval mode.

    Returns:
        (model, config, tokenizer): `config` is the one that the checkpoint was made with.

    Raises:
        FileNotFoundError: no such folder, or no complete checkpoint in it.
        ValueError: no checkpoint of that step; the message lists those that exist.
    """
    from clipkit.data.tokens import get_tokenizer
    from clipkit.encoders import CLIP, CLIPConfig
    from clipkit.train import dcp

    checkpoint = newest_checkpoint(Path(run_dir), step)
    state = checkpoint.state()
    model = CLIP(CLIPConfig.from_dict(state["model_config"]))
    prefix = _prefix(checkpoint)
    dcp.load_tensors({prefix + name: value for name, value in model.state_dict().items()}, checkpoint.path, None)
    model.to(device).eval()
    return model, parse_config(state["config"]), get_tokenizer(model.config)


def run_tensors(run_dir: str | Path) -> dict[str, Tensor]:
    """The tensors of the model in a run's newest complete checkpoint, under the model's own names, on the CPU.

    Raises:
        FileNotFoundError: no such folder, or no complete checkpoint in it.
    """
    from clipkit.train import dcp

    checkpoint = newest_checkpoint(Path(run_dir))
    return dcp.read_tensors(checkpoint.path, _prefix(checkpoint))


def _prefix(checkpoint: Checkpoint) -> str:
    """Before the names of the CLIP model's tensors: a recipe may train a larger module with that model inside."""
    from clipkit.train import dcp

    inside = "model.clip."
    return inside if any(name.startswith(inside) for name in dcp.tensor_names(checkpoint.path)) else "model."


def newest_checkpoint(run_dir: Path, step: int | None = None) -> Checkpoint:
    """A run's newest complete checkpoint, or the one after `step` steps; raises as `load_run` does."""
    if not run_dir.is_dir():
        raise FileNotFoundError(f"run: {run_dir} does not exist; give the folder that clipkit train wrote (output.dir)")
    found = complete_checkpoints(run_dir / CHECKPOINTS)
    if not found:
        raise FileNotFoundError(
            f"run: {run_dir} has no complete checkpoint; let clipkit train save one (train.save_every)"
        )
    if step is None:
        return found[0]
    for checkpoint in found:
        if checkpoint.step == step:
            return checkpoint
    raise value_error(
        "step", got=step, want=" or ".join(str(one.step) for one in found), fix="choose one that was kept"
    )
