# SPDX-License-Identifier: Apache-2.0
"""One process's share of a run: everything the loop works on, and what it can ask of it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from clipkit.recipes import BaseRecipe
from clipkit.train.checkpoint import Checkpoint, CheckpointStore
from clipkit.train.config import Config
from clipkit.train.metrics import MetricsFile, Tracker, flatten
from clipkit.train.parallelize import replica, unwrap
from clipkit.train.progress import Progress
from clipkit.train.runtime import Runtime
from clipkit.train.signals import StopRequest, unheard_by_children
from clipkit.train.state import Position, check_resumable, plain_state, training_tensors
from clipkit.train.step import StepResult, TrainStep

if TYPE_CHECKING:
    from clipkit.data import Batch, Loader
    from clipkit.encoders import TowersReport

log = logging.getLogger(__name__)


@dataclass
class Session:
    """A run in progress. `init_report`, `metrics`, `trackers` and `progress` exist on rank 0 only."""

    config: Config
    runtime: Runtime
    run_dir: Path
    recipe: BaseRecipe
    train_step: TrainStep
    loader: Loader
    fingerprint: str
    samples: int
    tokenizer: Any
    store: CheckpointStore
    total_steps: int
    steps_per_epoch: int
    init_report: TowersReport | None = None
    position: Position = field(default_factory=Position)
    metrics: MetricsFile | None = None
    trackers: list[Tracker] = field(default_factory=list)
    progress: Progress | None = None
    _saved_step: int = -1
    _evaluated_step: int = -1
    _skipped_before: int = 0

    @property
    def module(self) -> nn.Module:
        """What is trained, without DDP around it."""
        return unwrap(self.train_step.module)

    def batches(self) -> Generator[Batch, None, None]:
        """This rank's rows of each global batch from the current step on, on the device, in the weights' precision."""
        dtype = self.train_step.precision.weight_dtype
        source = self.loader.batches(self.position.step)
        with unheard_by_children():  # the first batch is what starts the data workers
            batch = next(source)
        while True:
            moved = batch.to(self.runtime.device)
            yield moved if moved.pixels.dtype == dtype else replace(moved, pixels=moved.pixels.to(dtype))
            batch = next(source)

    # Checkpoints

    def save_due(self) -> bool:
        """Whether the configuration wants a checkpoint at this step."""
        every = self.config.train.save_every
        self.store.poll()
        return bool(every) and self.position.step > 0 and self.position.step % every == 0

    def save(self) -> None:
        """Write a checkpoint, unless this step's is there already. Collective."""
        if self._saved_step == self.position.step:
            return
        self.position.skipped_samples = self._skipped_samples()
        model: Any = self.recipe.model(self.module)
        state = plain_state(
            self.position,
            self.config,
            self.recipe,
            self.train_step.precision.scaler,
            fingerprint=self.fingerprint,
            samples=self.samples,
            world_size=self.runtime.world_size,
            model_config=model.config.to_dict(),
        )
        self.store.save(self.position.step, self._tensors(), state)
        self._saved_step = self.position.step
        log.info("checkpoint at step %d", self.position.step)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become the run that `checkpoint` holds. Collective.

        Raises:
            ValueError: it belongs to another run (data, global batch, model, ...).
        """
        from clipkit.train import dcp

        state = checkpoint.state()
        changes = check_resumable(state, self.config, fingerprint=self.fingerprint, samples=self.samples)
        dcp.load_tensors(self._tensors(), checkpoint.path, self.runtime.control)
        self.recipe.load_state_dict({**self.recipe.state_dict(), **state["recipe"]})
        if state["scaler"] and self.train_step.precision.scaler.is_enabled():
            self.train_step.precision.scaler.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])
        self._saved_step, self._skipped_before = self.position.step, self.position.skipped_samples
        for change in changes:
            log.warning("this configuration differs from the checkpoint's: %s", change)

    def rewind_metrics(self) -> None:
        """Make metrics.jsonl end at the current step, and learn from it whether this step was evaluated."""
        evaluated = self.metrics.rewind(self.position.step) if self.metrics else -1
        self._evaluated_step = int(str(self.runtime.share(evaluated)))

    def _tensors(self) -> dict[str, torch.Tensor]:
        return training_tensors(self.module, self.train_step.optimizer, self.recipe)

    # Evaluation

    def evaluation_due(self) -> bool:
        """Whether there is something to evaluate at this step."""
        step, settings = self.position.step, self.config.eval
        if not (settings.retrieval or settings.zero_shot) or step == self._evaluated_step:
            return False
        return step >= self.total_steps or (settings.every_steps > 0 and step > 0 and step % settings.every_steps == 0)

    def evaluate(self, stop: StopRequest) -> bool:
        """Evaluate and log; False if a request to stop came between two data sets. Collective."""
        from clipkit.evaluate import evaluate_run

        interrupted = False

        def should_stop() -> bool:
            nonlocal interrupted
            interrupted = stop.agreed(self.runtime)
            return interrupted

        found = evaluate_run(
            self.model_for_evaluation(), self.tokenizer, self.config.eval, runtime=self.runtime, should_stop=should_stop
        )
        if interrupted:
            return False
        self._evaluated_step = self.position.step
        self._record("eval", {"metrics": found})
        if self.runtime.is_main:
            shown = ", ".join(
                f"{name} {value:.4g}" for name, value in found.items() if name.endswith(("/R@1", "/top@1"))
            )
            log.info("step %d: %s", self.position.step, shown)
            result = json.dumps({"step": self.position.step, **found}, indent=1)
            (self.run_dir / "eval.json").write_text(result + "\n", encoding="utf-8")
        return True

    def model_for_evaluation(self) -> nn.Module:
        """The CLIP model, whole on this rank, in its current mode. Collective under FSDP2."""
        return self.recipe.model(replica(self.module))

    # Numbers

    def log_step(
        self, result: StepResult, *, loss: float, grad_norm: float, samples_per_second: float, data_wait: float
    ) -> None:
        """Write the training line of the current step. Collective (broken samples are added up)."""
        position = self.position
        position.skipped_samples = self._skipped_samples()
        self._record(
            "train",
            {
                "epoch": (position.step - 1) // self.steps_per_epoch,
                "loss": loss,
                "losses": {name: float(value) for name, value in result.losses.items()},
                "lr": result.lr,
                **self.recipe.observations(self.module),
                "grad_norm": grad_norm,
                "samples_per_second": samples_per_second,
                "data_wait": data_wait,
                "seconds": position.seconds,
                "skipped_samples": position.skipped_samples,
                "skipped_updates": position.skipped_updates,
            },
        )

    def event(self, name: str, **values: object) -> None:
        """Write an event line."""
        self._record("event", {"event": name, **values})

    def preempted(self, signal_name: str | None) -> None:
        """Save and say so. Collective."""
        self.save()
        self.store.finish()
        self.event("preempted", signal=signal_name or "on another rank")
        log.warning(
            "stopped by %s at step %d, saved; the same command goes on from here",
            signal_name or "another rank",
            self.position.step,
        )

    def show(self, *, loss: float, samples_per_second: float, eta_seconds: float) -> None:
        """Update the progress bar."""
        if self.progress is not None:
            self.progress.update(
                self.position.step, loss=loss, samples_per_second=samples_per_second, eta_seconds=eta_seconds
            )

    def close(self) -> None:
        """Let go of trackers and the bar. Not collective: it also follows the failure of one rank."""
        for tracker in self.trackers:
            tracker.close()
        if self.progress is not None:
            self.progress.clear()

    def _record(self, kind: str, values: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.append(kind, self.position.step, values)
        if kind != "event":
            numbers = {name: value for name, value in flatten(values, kind).items() if math.isfinite(value)}
            for tracker in self.trackers:
                tracker.log(self.position.step, numbers)

    def _skipped_samples(self) -> int:
        return self._skipped_before + self.runtime.total([sum(self.loader.skipped.values())])[0]
