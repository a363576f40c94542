# SPDX-License-Identifier: Apache-2.0
"""The training loop: batches in, steps, numbers, checkpoints, evaluations, and a stop when asked."""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from clipkit.train.session import Session
from clipkit.train.signals import StopRequest
from clipkit.train.step import StepResult
from clipkit.train.watch import LossWatch

if TYPE_CHECKING:
    from clipkit.data import Batch


class Ending(enum.Enum):
    """How a run ended; the value is the process's exit code."""

    FINISHED = 0
    PREEMPTED = 75  # EX_TEMPFAIL: saved; the same command goes on from there


def run_loop(session: Session, stop: StopRequest) -> Ending:
    """Train from the session's position to its last step, with a complete checkpoint at the end in either case.

    Raises:
        NonFiniteLossError: see LossWatch; the newest checkpoint is from before.
    """
    config, position = session.config.train, session.position
    watch = LossWatch(session.runtime.device, session.recipe.chance_loss(config.global_batch))
    meter = _Meter(session, watch)
    with contextlib.closing(session.batches()) as batches:
        while True:
            finished = position.step >= session.total_steps
            stopping = stop.agreed(session.runtime)
            if stopping or finished or session.save_due():
                watch.settle()
                session.save()
            if stopping or (session.evaluation_due() and not session.evaluate(stop)):
                session.preempted(stop.signal_name)
                return Ending.PREEMPTED
            if finished:
                return Ending.FINISHED
            result = session.train_step(meter.wait_for(batches), position.step)
            position.step += 1
            position.skipped_updates += result.skipped
            watch.push(position.step, result)
            meter.count(result)


class _Meter:
    """Times the steps, shows progress, and writes a training line every `log_every` steps."""

    def __init__(self, session: Session, watch: LossWatch) -> None:
        self._session, self._watch = session, watch
        self._started = 0.0
        self._new_window()

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, and how long it took to come."""
        self._started = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - self._started
        return batch

    def count(self, result: StepResult) -> None:
        """One step more."""
        session, position = self._session, self._session.position
        elapsed = time.perf_counter() - self._started
        position.seconds += elapsed
        self._seconds += elapsed
        self._steps += 1
        speed = self._steps * session.config.train.global_batch / max(self._seconds, 1e-9)
        left = (session.total_steps - position.step) * self._seconds / self._steps
        if position.step % session.config.train.log_every == 0 or position.step == session.total_steps:
            self._watch.settle()
            session.log_step(
                result,
                loss=self._watch.loss,
                grad_norm=self._watch.grad_norm,
                samples_per_second=speed,
                data_wait=self._waited / max(self._seconds, 1e-9),
            )
            self._new_window()
        session.show(loss=self._watch.loss, samples_per_second=speed, eta_seconds=left)

    def _new_window(self) -> None:
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
