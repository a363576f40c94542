# SPDX-License-Identifier: Apache-2.0
"""A run from beginning to end: join the others, resume, train, evaluate, report."""

from __future__ import annotations

import datetime
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import clipkit
from clipkit.errors import value_error
from clipkit.machine import commit, processor
from clipkit.train.build import CHECKPOINTS, build_session
from clipkit.train.checkpoint import Checkpoint, complete_checkpoints, load_newest, set_aside
from clipkit.train.config import Config, dump_config
from clipkit.train.loop import Ending, run_loop
from clipkit.train.metrics import MetricsFile, open_trackers
from clipkit.train.progress import Progress
from clipkit.train.runtime import Runtime, runtime
from clipkit.train.session import Session
from clipkit.train.signals import listening
from clipkit.train.typed import to_plain
from clipkit.train.watch import NonFiniteLossError

log = logging.getLogger(__name__)


def train(config: Config, *, resume: str = "auto", command: Sequence[str] | None = None) -> Ending:
    """Train what `config` describes in the folder `config.output.dir`.

    Args:
        config: see `load_config`.
        resume: "auto" goes on from the newest complete checkpoint in the folder, if any; "never" moves an earlier run
            in that folder aside; a path is a checkpoint, or a run folder whose newest checkpoint is meant.
        command: what to record as the way to reproduce the run (default: this process's).

    Returns:
        FINISHED, or PREEMPTED after SIGTERM, SIGUSR1 or Ctrl-C: then everything is saved.

    Raises:
        ValueError, TypeError, FileNotFoundError: settings, data or a checkpoint that do not fit; nothing was trained.
        NonFiniteLossError: training diverged.
    """
    with runtime() as here, listening() as stop:
        log.info("rank %d of %d (%s) on %s", here.rank, here.world_size, here.source, here.device)
        run_dir = Path(config.output.dir)
        candidates = _candidates(run_dir, resume)
        resuming = bool(here.share(bool(candidates)))
        session = build_session(config, here, run_dir, resuming=resuming)
        _resume(session, candidates)
        _prepare_folder(session, resume, sys.argv if command is None else command)
        if here.is_main and not resuming:
            _write_init_report(session)
        if here.is_main:
            session.metrics = MetricsFile(run_dir / "metrics.jsonl")
            session.trackers = open_trackers(config.train.trackers, run_dir, to_plain(config))
            session.progress = Progress(session.total_steps)
        session.rewind_metrics()
        session.event("start", world_size=here.world_size, device=str(here.device), resumed=session.position.step > 0)
        try:
            ending = run_loop(session, stop)
            if ending is Ending.FINISHED:
                _finish(session)
        except NonFiniteLossError:
            session.store.finish()  # every rank is here; after any other failure the others cannot be waited for
            raise
        finally:
            session.close()
        return ending


def _candidates(run_dir: Path, resume: str) -> list[Checkpoint]:
    if resume == "never":
        return []
    if resume == "auto":
        return complete_checkpoints(run_dir / CHECKPOINTS)
    path = Path(resume)
    found = complete_checkpoints(path / CHECKPOINTS)
    if not found:
        found = [one for one in complete_checkpoints(path.parent) if one.path.name == path.name]
    if not found:
        raise value_error(
            "--resume",
            got=resume,
            want="auto, never, a checkpoint folder or a run folder with a complete checkpoint",
            fix="correct the path",
        )
    return found


def _prepare_folder(session: Session, resume: str, command: Sequence[str]) -> None:
    """Make the run folder and write what describes the run. Rank 0 writes, everybody waits."""
    run_dir = session.run_dir
    if session.runtime.is_main:
        if resume == "never" and run_dir.exists() and any(run_dir.iterdir()):
            log.warning("an earlier run is in %s; it is now %s", run_dir, set_aside(run_dir, "old"))
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(dump_config(session.config), encoding="utf-8")
        facts = environment(session.runtime, command)
        (run_dir / "environment.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    session.runtime.barrier()


def _write_init_report(session: Session) -> None:
    """Say where the first weights came from; a run that drew them is not left with an earlier one's report."""
    path = session.run_dir / "init_report.json"
    path.unlink(missing_ok=True)
    if session.init_report is not None:
        path.write_text(json.dumps(session.init_report.to_dict(), indent=1) + "\n", encoding="utf-8")


def _resume(session: Session, candidates: list[Checkpoint]) -> None:
    chosen = load_newest(candidates, session.runtime, session.restore)
    if chosen is None:
        return
    log.info("resumed from %s", chosen.path)
    if session.runtime.is_main:
        # What comes after the resumed step is another history, or unreadable: it must not be taken for the newest.
        for later in complete_checkpoints(session.run_dir / CHECKPOINTS):
            if later.step > chosen.step:
                log.warning("checkpoint %s is now %s", later.path.name, set_aside(later.path, "superseded"))
    session.runtime.barrier()


def _finish(session: Session) -> None:
    """Make the report (rank 0), from the trained model."""
    from clipkit.report import write_report

    session.store.finish()
    session.event("finished", seconds=session.position.seconds)
    model = session.model_for_evaluation()
    if session.runtime.is_main:
        if session.progress is not None:
            session.progress.clear()
        chance_loss = session.recipe.chance_loss(session.config.train.global_batch)
        path = write_report(session.run_dir, model, session.tokenizer, session.config, chance_loss)
        log.info("report: %s", path)
    session.runtime.barrier()


def environment(here: Runtime, command: Sequence[str]) -> dict[str, object]:
    """What the run's numbers depend on beyond its configuration."""
    return {
        "command": shlex.join([Path(command[0]).name, *command[1:]]),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "clipkit": clipkit.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor()[0],
        "device": torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world_size": here.world_size,
        "launcher": here.source,
    }
