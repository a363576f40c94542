# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders: when one counts as complete, which is the newest, which are deleted.

    RUN/checkpoints/step-00000100/   .metadata, __0_0.distcp ...   tensors (torch.distributed.checkpoint)
                                     state.json                    step, configuration, dataset, plain recipe state
                                     complete.json                 every file with its size: the commit marker

The marker is written last, by rename. A folder without it, or whose files do not match it, was cut off half-way and
is never read.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from clipkit.errors import value_error
from clipkit.train.runtime import Runtime

log = logging.getLogger(__name__)

MARKER, STATE = "complete.json", "state.json"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint."""

    path: Path
    step: int

    def state(self) -> dict[str, Any]:
        """The JSON part."""
        loaded: dict[str, Any] = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        return loaded


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lives."""
    return folder / f"step-{step:08d}"


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """All complete checkpoints, newest first. Each incomplete one is named in the log with the reason."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        defect = _defect(path)
        if defect is None:
            found.append(Checkpoint(path, int(match.group(1))))
        else:
            log.warning("skipping checkpoint %s: %s", path.name, defect)
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def _defect(path: Path) -> str | None:
    """Why a folder is not a complete checkpoint, or None."""
    try:
        sizes = json.loads((path / MARKER).read_text(encoding="utf-8"))["files"]
        for name, size in sizes.items():
            actual = (path / name).stat().st_size
            if actual != size:
                return f"{name} has {actual} bytes, {size} were written"
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        return "its writing was cut off (no commit marker)" if missing == MARKER else f"{missing} is missing"
    except (ValueError, KeyError, AttributeError) as error:
        return f"unreadable commit marker ({error})"
    return None


class CheckpointStore:
    """Saves one run's checkpoints and deletes the old ones. Every method is collective."""

    def __init__(self, folder: Path, runtime: Runtime, *, keep_last: int, asynchronous: bool = False) -> None:
        self.folder, self._runtime, self._keep, self._asynchronous = folder, runtime, keep_last, asynchronous
        self._pending: tuple[Future[Any], Path] | None = None

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint; it is complete when this returns (asynchronous: by the next save, `poll` or `finish`)."""
        from clipkit.train import dcp

        self.finish()
        path = step_folder(self.folder, step)
        if self._runtime.is_main:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            _write_synced(path / STATE, json.dumps(state, indent=1, allow_nan=False))
        self._runtime.barrier()
        if self._asynchronous:
            group = self._runtime.saving
            self._pending = (dcp.save_tensors_async(tensors, path, group), path)
            return
        dcp.save_tensors(tensors, path, self._runtime.control)
        self._commit(path)

    def poll(self) -> None:
        """Commit an asynchronous save that has finished. Rank 0 knows: its thread ends after everybody's."""
        if self._pending is not None and self._pending[0].done():
            self._commit_pending()

    def finish(self) -> None:
        """Wait for an asynchronous save and commit it."""
        if self._pending is not None:
            self._commit_pending()
        self._runtime.barrier()

    def _commit_pending(self) -> None:
        from clipkit.train import dcp

        assert self._pending is not None
        (future, path), self._pending = self._pending, None
        dcp.wait(future)
        self._commit(path)

    def _commit(self, path: Path) -> None:
        if not self._runtime.is_main:
            return
        from clipkit.train import dcp

        files = {str(file.relative_to(path)): file.stat().st_size for file in sorted(path.rglob("*")) if file.is_file()}
        unseen = sorted(dcp.data_files(path) - set(files))
        if unseen:
            raise FileNotFoundError(
                f"{path}: rank 0 does not see {', '.join(unseen[:3])}, which other ranks wrote; put output.dir on a "
                "file system that all nodes share"
            )
        _write_synced(path / MARKER, json.dumps({"files": files}, indent=1))
        self._delete_old(newest=path)

    def _delete_old(self, newest: Path) -> None:
        """Keep the last k complete ones; also clear away older folders that never became complete."""
        kept = {checkpoint.path for checkpoint in complete_checkpoints(self.folder)[: self._keep]} | {newest}
        for path in sorted(self.folder.iterdir()):
            if _NAME.fullmatch(path.name) and path not in kept:
                (path / MARKER).unlink(missing_ok=True)  # first: a half-deleted folder must not look complete
                shutil.rmtree(path, ignore_errors=True)


def load_newest(
    candidates: list[Checkpoint], runtime: Runtime, load: Callable[[Checkpoint], None]
) -> Checkpoint | None:
    """Try `load` on each candidate, newest first, until one succeeds on every rank; None if there is none at all.

    Rank 0's list counts. Refusals of the configuration (ValueError) are the user's to solve and end the search;
    unreadable files make it go on with the next older one.

    Raises:
        ValueError: there are candidates and none could be read.
    """
    chosen = runtime.share([(str(checkpoint.path), checkpoint.step) for checkpoint in candidates])
    assert isinstance(chosen, list)
    for path, step in chosen:
        checkpoint = Checkpoint(Path(path), step)
        failure = _attempt(load, checkpoint)
        if not runtime.most([failure is not None])[0]:
            return checkpoint
        log.warning(
            "checkpoint %s cannot be read (%s); trying an older one", checkpoint.path.name, failure or "another rank"
        )
    if chosen:
        names = ", ".join(Path(path).name for path, _ in chosen)
        raise value_error(
            "checkpoints",
            got=f"{names}, none of which can be read (see above)",
            want="one that can",
            fix="restore one, or start anew with --resume never",
        )
    return None


def set_aside(path: Path, reason: str) -> Path:
    """Rename `path` to `path.reason-1` (or -2, ...) and return that: out of the way, nothing lost."""
    number = 1
    while (target := path.with_name(f"{path.name}.{reason}-{number}")).exists():
        number += 1
    return path.rename(target)


def _attempt(load: Callable[[Checkpoint], None], checkpoint: Checkpoint) -> str | None:
    try:
        load(checkpoint)
    except (RuntimeError, OSError, json.JSONDecodeError) as error:
        return str(error)
    return None


def _write_synced(path: Path, text: str) -> None:
    """Write all of a file or nothing of it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    if os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
