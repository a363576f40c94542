# SPDX-License-Identifier: Apache-2.0
"""The throughput suite: a case's variants and its floor, timed in turns; peak memory; what could not run, and why."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import record
from bench.cases import Case, tensors
from bench.clocks import clock_for, peak_mib
from bench.floor import run_products
from bench.ours import OURS
from bench.peers import Step, Variant
from bench.trial import Trial, Trials, disagreement, explain

LEAST_REPEATS = 3
MOST_REPEATS = 15
LONG = 3.0
"""Seconds of a step that needs no warm-up of its own after its trial."""

PEAK_IS_KNOWN = Path("/proc/self/clear_refs").exists()
"""Linux tells a process's peak and lets it be reset."""


@dataclass
class Suite:
    """One run.

    Attributes:
        cases: what to measure, in this order.
        variants: of each case, those that have its loss.
        device: "cpu" or "cuda".
        budget: seconds after which no further case is begun.
        compiled: the only cases in which a variant is measured that compiles for each of them; None for all.
        say: told of each row as it is there.
        save: called after every case: a run that is cut off keeps what it has.
        stopped: where and why a run broke off; the rows until then are there.
    """

    cases: list[Case]
    variants: list[Variant]
    device: str
    budget: float
    compiled: frozenset[Case] | None = None
    say: Callable[[dict[str, Any]], None] = lambda row: None
    save: Callable[[], object] = lambda: None
    rows: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None
    _steps: dict[tuple[str, ...], float] = field(default_factory=dict)
    _tried: dict[tuple[str, ...], str | None] = field(default_factory=dict)

    def run(self) -> list[dict[str, Any]]:
        """A row for each case and variant, and one named "floor" for each case."""
        self._deadline = time.monotonic() + self.budget
        self._clock = clock_for(self.device)
        with Trials() as self._trials:
            for case in self.cases:
                try:
                    self._measure(case)
                except torch.AcceleratorError as error:
                    self.stopped = f"{case}: {explain(error)}"
                self.save()
                if self.stopped:
                    break
        return self.rows

    def patience(self, variant: str) -> float:
        """The longest that a step may take: a tenth of the budget for clipkit, a fortieth for each of many peers."""
        return self.budget / (10 if variant.startswith(OURS) else 40)

    def _measure(self, case: Case) -> None:
        found: dict[str, dict[str, Any]] = {}
        try:
            self._fill(case, found)
        finally:
            for row in found.values():
                if row["seconds"] is None and row["reason"] is None:
                    row["reason"] = "the run broke off here"
                self.rows.append(row)
                self.say(row)

    def _fill(self, case: Case, found: dict[str, dict[str, Any]]) -> None:
        steps: dict[str, Step] = {}
        for variant in (each for each in self.variants if case.loss in each.losses):
            row = found[variant.name] = self._row(case, variant.name, variant.version)
            row["reason"] = self._obstacle(case, variant) or self._try(case, variant, row)
            if row["reason"] is None:
                steps[variant.name] = variant.load(case.loss)
        found["floor"] = self._row(case, "floor", torch.__version__)
        late = self._late()
        if late and not steps:
            found["floor"]["reason"] = late
        else:
            self._time(case, steps, found)

    def _row(self, case: Case, variant: str, version: str | None) -> dict[str, Any]:
        return {
            "loss": case.loss,
            "N": case.rows,
            "d": case.width,
            "dtype": case.dtype,
            "direction": case.direction,
            "variant": variant,
            "version": version,
            "seconds": None,
            "extra_mib": None,
            "floor_units": case.products.units,
            "floor_share": None,
            "reason": None,
        }

    def _late(self) -> str | None:
        return f"the budget of {self.budget:.0f} s was spent" if time.monotonic() > self._deadline else None

    def _obstacle(self, case: Case, variant: Variant) -> str | None:
        """Why `variant` is not even tried."""
        if variant.needs_cuda and self.device != "cuda":
            return "needs CUDA"
        if variant.distribution and variant.version is None:
            return f"not installed: pip install {variant.distribution}"
        if variant.compiles and self.compiled is not None and case not in self.compiled:
            return "compiles for each case, which takes longer than it; ask for the case by name"
        known = self._steps.get(_kind(case, variant.name))
        expected = None if known is None else known * case.rows**2 * case.width
        if expected is not None and expected > self.patience(variant.name):
            return f"left out: about {expected:.0f} s a step"
        return self._late()

    def _try(self, case: Case, variant: Variant, row: dict[str, Any]) -> str | None:
        """The variant's first step, which is also its memory's measurement; why it is left out after that, or None."""
        if self.device == "cpu" and PEAK_IS_KNOWN:
            # A compilation takes up to two minutes on a busy machine, and is not the step.
            patience = self.patience(variant.name) + (120 if variant.compiles else 20)
            trial = self._trials.run(case, variant.name, self.device, patience)
        else:
            trial = self._try_here(case, variant)
        if trial.seconds is None:
            return trial.reason
        row["extra_mib"] = None if trial.extra_mib is None else round(trial.extra_mib, 2)
        self._steps[_kind(case, variant.name)] = trial.seconds / (case.rows**2 * case.width)
        return None

    def _try_here(self, case: Case, variant: Variant) -> Trial:
        """In this process: on a card, whose allocator counts for itself, and where a process's peak cannot be known."""
        reason = self._first_here(case, variant)
        if reason is not None:
            return Trial(reason=reason)
        try:
            step, inputs = variant.load(case.loss), tensors(case, self.device)
            call = partial(step, inputs, case.direction)
            if variant.compiles:
                call()
            seconds: list[float] = []
            measure = partial(peak_mib, device=self.device) if self.device == "cuda" else _unmeasured
            return Trial(extra_mib=measure(lambda: seconds.append(self._clock(call))), seconds=seconds[0])
        except Exception as error:
            return Trial(reason=_reason(error))

    def _first_here(self, case: Case, variant: Variant) -> str | None:
        """With kernels of its own, once for each loss: is the card alive after it. Once for each kind: is it right."""
        small = Case(case.loss, 1024, case.width, case.dtype, case.direction)
        apart, kind = (case.loss, variant.name), _kind(case, variant.name)
        if variant.own_kernels and apart not in self._tried:
            self._tried[apart] = self._trials.run(small, variant.name, self.device, 120).reason
        if self._tried.get(apart) is None and kind not in self._tried:
            try:
                self._tried[kind] = disagreement(variant.load(case.loss), small, self.device)
            except Exception as error:
                self._tried[kind] = _reason(error)
        return self._tried.get(apart) or self._tried[kind]

    def _time(self, case: Case, steps: dict[str, Step], found: dict[str, dict[str, Any]]) -> None:
        """Rounds over all variants and the floor, so that the machine's drift meets all alike."""
        inputs = tensors(case, self.device)
        calls: dict[str, Callable[[], object]] = {"floor": partial(run_products, case, inputs)}
        calls |= {name: partial(step, inputs, case.direction) for name, step in steps.items()}
        costs: dict[str, float] = {}
        for name, call in list(calls.items()):
            known = self._steps.get(_kind(case, name), 0.0) * case.rows**2 * case.width
            try:
                # Caches and lazy imports; nothing next to a step of seconds.
                costs[name] = known if known > LONG else self._clock(call)
            except Exception as error:
                found[name]["reason"] = _reason(error)
                del calls[name]
        seconds = self._rounds(calls, _repeats(sum(costs.values()), self.budget))
        floor = seconds.get("floor")
        for name, values in seconds.items():
            found[name]["seconds"] = record.summary(values)
            if floor:
                shares = [base / value for base, value in zip(floor, values, strict=True)]
                found[name]["floor_share"] = round(statistics.median(shares), 3)

    def _rounds(self, calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                seconds[name].append(self._clock(call))
        return seconds


def _kind(case: Case, variant: str) -> tuple[str, ...]:
    return case.loss, case.dtype, case.direction, variant


def _repeats(seconds: float, budget: float) -> int:
    """How often to go round, where a round takes `seconds`: for a sixtieth of the budget, but thrice; where that is
    more than a fifth of the budget, less often, but once.
    """
    within = int(budget / 60 / max(seconds, 1e-9))
    if within >= LEAST_REPEATS:
        return min(MOST_REPEATS, within)
    return max(1, min(LEAST_REPEATS, int(budget / 5 / seconds)))


def _reason(error: Exception) -> str:
    """A line for the row. Raises again where the card's context is broken, and nothing can follow in this process."""
    if isinstance(error, torch.AcceleratorError):
        torch.cuda.synchronize()
    return explain(error)


def _unmeasured(call: Callable[[], object]) -> None:
    call()
