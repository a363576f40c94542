# SPDX-License-Identifier: Apache-2.0
"""Where a run's numbers go: metrics.jsonl always, TensorBoard and W&B when asked for. Rank 0 only."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from clipkit.errors import value_error


class Tracker(Protocol):
    """One destination for numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of one step."""

    def close(self) -> None:
        """Flush and let go."""


class MetricsFile:
    """metrics.jsonl: one JSON object per line with "kind" (train, eval, event) and "step"; flushed line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add a line. NaN and infinities become null, which every JSON reader takes."""
        line = json.dumps({"kind": kind, "step": step, **_finite(values)}, ensure_ascii=False, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def rewind(self, step: int) -> int:
        """Forget lines after `step`, which a resumed run writes again; events stay, they are the run's history.

        So no step is in the file twice. A line that a kill cut off goes too. Returns the last evaluated step, or -1.
        """
        if not self.path.exists():
            return -1
        kept, evaluated = [], -1
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                kind, at = line["kind"], int(line["step"])
            except (ValueError, KeyError, TypeError):
                continue
            if at <= step or kind == "event":
                kept.append(text + "\n")
                evaluated = max(evaluated, at) if kind == "eval" else evaluated
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.path)
        return evaluated


class TensorBoardTracker:
    """Scalars for TensorBoard, under RUN/tensorboard."""

    def __init__(self, run: Path) -> None:
        self._writer: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(run / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar per number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WandbTracker:
    """A W&B run that is continued when the clipkit run is; W&B's own environment variables choose project and mode."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        identifier = run / "wandb-id.txt"
        wandb: Any = importlib.import_module("wandb")
        if not identifier.exists():
            identifier.write_text(wandb.util.generate_id(), encoding="utf-8")
        self._run: Any = wandb.init(
            id=identifier.read_text(encoding="utf-8"), resume="allow", dir=str(run), name=run.name, config=dict(config)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One history row."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose package is missing before anything is trained.

    Raises:
        ValueError: not installed.
    """
    packages = {"tensorboard": "tensorboard", "wandb": "wandb"}
    for name in names:
        if not _is_installed(packages[name]):
            raise value_error(
                "train.trackers",
                got=f"{name}, which is not installed",
                want="an installed tracker",
                fix=f"pip install {packages[name]}, or remove it from train.trackers",
            )


def open_trackers(names: Sequence[str], run: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that a configuration asks for, imported now and not before."""
    return [TensorBoardTracker(run) if name == "tensorboard" else WandbTracker(run, config) for name in names]


def flatten(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """`{"losses": {"clip": 1.0}}` to `{"prefix/losses/clip": 1.0}`; drops what is no number."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}/{name}"))
        elif isinstance(value, (int, float)):
            flat[f"{prefix}/{name}"] = float(value)
    return flat


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
