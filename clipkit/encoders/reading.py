# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's tensors, from a file or a state dict. Nothing in it is executed."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.encoders.layouts import Layout, State, recognise, unwrap
from clipkit.errors import value_error

_NAMED_AT_MOST = 8


class Weights(NamedTuple):
    """Tensors under a checkpoint's own names, and where they came from, for messages."""

    state: State
    source: str


def read_weights(source: str | Path | Mapping[str, Tensor] | Weights) -> Weights:
    """The tensors of a .safetensors or torch.save file (read with weights_only), or of a state dict.

    Training wrappers ("state_dict") and module prefixes ("module.") are taken off.

    Raises FileNotFoundError for a missing file, ValueError for a file that is no checkpoint of tensors.
    """
    if isinstance(source, Weights):
        return source
    if isinstance(source, Mapping):
        return Weights(unwrap(source), "a state dict")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint: {path} is not a file; give a .safetensors or .pt file, names are not fetched"
        )
    return Weights(unwrap(_tensors(path)), str(path))


def recognised(weights: Weights) -> Layout:
    """Which naming the tensors have. ValueError when it is none of the known ones."""
    layout = recognise(weights.state)
    if layout is None:
        raise value_error(
            "checkpoint",
            got=f"{weights.source} with tensors {some(weights.state) or 'none'}",
            want="a CLIP in the layout of open_clip, OpenAI, transformers, timm, EVA-CLIP or clipkit",
            fix="rename its tensors to open_clip's names",
        )
    return layout


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f", and {len(listed) - _NAMED_AT_MOST} more" if len(listed) > _NAMED_AT_MOST else ""
    return ", ".join(listed[:_NAMED_AT_MOST]) + more


def _tensors(path: Path) -> Mapping[str, object]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise _unreadable(path, error, "download or export it again") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        fix = "save its state dict: torch.save(model.state_dict(), path); a TorchScript file is read by torch.jit.load"
        raise _unreadable(path, error, fix) from error
    if not isinstance(loaded, Mapping):
        raise _unreadable(path, type(loaded).__name__, "save a state dict")
    return loaded


def _unreadable(path: Path, error: object, fix: str) -> ValueError:
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return value_error("checkpoint", got=f"{path.name}: {first_line}", want="a file of tensors", fix=fix)
