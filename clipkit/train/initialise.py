# SPDX-License-Identifier: Apache-2.0
"""Where a run's first weights come from when they are not drawn: towers of other models (`model.init`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn

from clipkit.train.config import InitConfig
from clipkit.train.runtime import Runtime

if TYPE_CHECKING:
    from clipkit.encoders import TowersReport
    from clipkit.encoders.reading import Weights

log = logging.getLogger(__name__)

_EXPORTED = "open_clip_model.safetensors"  # in the folders that `clipkit export` writes


def check_init(init: InitConfig) -> None:
    """Refuse towers that are not there, before anything long begins.

    Raises:
        FileNotFoundError: names the key and the path.
    """
    from clipkit.train.loading import newest_checkpoint

    for key, source in _given(init).items():
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(
                f"model.init.{key}: {source} does not exist; give a checkpoint file or a folder of clipkit train"
            )
        if _is_run(path):
            try:
                newest_checkpoint(path)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"model.init.{key}: {error}") from None


def initialise(model: nn.Module, init: InitConfig, runtime: Runtime) -> TowersReport | None:
    """Fill the towers that `init` names, on rank 0, and make every rank's model equal to that one. Collective.

    Args:
        model: the CLIP model, whole and on the CPU.

    Returns:
        The report, on rank 0; None on other ranks, and where `init` names nothing.

    Raises:
        ValueError, FileNotFoundError: a checkpoint that cannot be read or does not fit. Every rank raises (others than
            rank 0 a ValueError), none is left waiting.
    """
    if not _given(init):
        return None
    report, failure = None, None
    if runtime.is_main:
        try:
            report = _fill(model, init)
            log.info("%s", report)
        except Exception as error:
            failure = error
    said = runtime.share(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    if said is not None:
        raise ValueError(said)
    if runtime.control is not None:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0, group=runtime.control)
    return report


def _fill(model: Any, init: InitConfig) -> TowersReport:
    from clipkit.encoders import PUBLISHED_SKIP, load_towers

    sources = {tower: _read(Path(source)) for tower, source in _given(init).items()}
    skip = PUBLISHED_SKIP if init.skip is None else init.skip
    return load_towers(model, image=sources.get("image"), text=sources.get("text"), skip=skip, resize=init.resize)


def _read(path: Path) -> Weights:
    from clipkit.encoders.reading import Weights, read_weights
    from clipkit.train.loading import run_tensors

    if _is_run(path):
        return Weights(run_tensors(path), str(path))
    return read_weights(path / _EXPORTED if path.is_dir() else path)


def _is_run(path: Path) -> bool:
    return path.is_dir() and not (path / _EXPORTED).is_file()


def _given(init: InitConfig) -> dict[str, str]:
    return {tower: source for tower, source in (("image", init.image), ("text", init.text)) if source is not None}
