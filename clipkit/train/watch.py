# SPDX-License-Identifier: Apache-2.0
"""Reading each step's loss without making a GPU wait, and stopping when it is no number any more."""

from __future__ import annotations

import logging
import math

import torch

from clipkit.train.step import StepResult

log = logging.getLogger(__name__)

_MAX_SKIPS_IN_A_ROW = 30
_CHANCE_STEP, _CHANCE_MARGIN = 200, 0.02


class NonFiniteLossError(RuntimeError):
    """The loss or the gradients became NaN or infinite; no checkpoint was made after it."""


class LossWatch:
    """Holds the newest step's loss and gradient norm.

    On a GPU they are copied to the host while the next step is launched, and looked at when that one is pushed;
    `settle` waits for them.
    """

    def __init__(self, device: torch.device, chance: float | None) -> None:
        self.loss = self.grad_norm = math.nan
        self._chance, self._on_gpu = chance, device.type == "cuda"
        self._pending: tuple[int, torch.Tensor, torch.cuda.Event | None, bool] | None = None
        self._skips = 0

    def push(self, step: int, result: StepResult) -> None:
        """Take the result of the step that made the count `step`."""
        self.settle()
        values = torch.stack([result.loss.float(), result.grad_norm.float()])
        event = None
        if self._on_gpu:
            host = torch.empty(2, pin_memory=True)
            values, event = host.copy_(values, non_blocking=True), torch.cuda.Event()
            event.record()
        self._pending = (step, values, event, result.skipped)
        if not self._on_gpu:
            self.settle()

    def settle(self) -> None:
        """Read and judge the pushed step, if that has not happened yet.

        Raises:
            NonFiniteLossError: names the step.
        """
        if self._pending is None:
            return
        (step, values, event, skipped), self._pending = self._pending, None
        if event is not None:
            event.synchronize()
        self.loss, self.grad_norm = (float(value) for value in values)
        self._skips = self._skips + 1 if skipped else 0
        if self._skips > _MAX_SKIPS_IN_A_ROW:
            raise NonFiniteLossError(
                f"step {step}: fp16 gradients overflowed {self._skips} times in a row, at every "
                "loss scale tried; use train.precision=bf16 or fp32, or a lower optim.lr"
            )
        if not skipped and not (math.isfinite(self.loss) and math.isfinite(self.grad_norm)):
            raise NonFiniteLossError(
                f"step {step}: loss {self.loss}, gradient norm {self.grad_norm}. Nothing was saved after this step; "
                "lower optim.lr, set optim.grad_clip (1.0 is usual), lengthen optim.schedule.warmup_steps or use fp32, "
                "then run the same command to go on from the last checkpoint"
            )
        self._compare_with_chance(step)

    def _compare_with_chance(self, step: int) -> None:
        if step == _CHANCE_STEP and self._chance and abs(self.loss - self._chance) < _CHANCE_MARGIN * self._chance:
            log.warning(
                "step %d: the loss %.4f is still that of guessing, ln(global batch) = %.4f. Usual causes: optim.lr too "
                "low or too high, too short a warm-up, captions that do not belong to the pictures",
                step,
                self.loss,
                self._chance,
            )
