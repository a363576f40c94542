# SPDX-License-Identifier: Apache-2.0
"""Whole steps in turns, and the parts of a step one by one."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.clocks import host_clock
from bench.end_to_end.batches import Batch
from bench.end_to_end.sides import Side

PARTS = (
    "image forward",
    "text forward",
    "loss forward",
    "loss backward",
    "text backward",
    "image backward",
    "optimizer",
)
FEWEST_ROUNDS = 2
PART_ROUNDS = 3


def step_seconds(sides: Sequence[Side], batches: Sequence[Batch], rounds: int, budget: float) -> dict[str, list[float]]:
    """Seconds of each side's steps, one side after the other and round again, all on the same batches.

    After a first round, which allocates and compiles and is not counted, as many as begin within `budget` seconds; at
    least two, at most `rounds`.
    """
    calls = {side.name: _stepper(side, batches) for side in sides}
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for number in range(max(FEWEST_ROUNDS, rounds)):
        if number >= FEWEST_ROUNDS and time.perf_counter() - start > budget:
            break
        for name, call in calls.items():
            seconds[name].append(host_clock(call))
    return seconds


def _stepper(side: Side, batches: Sequence[Batch]) -> Callable[[], None]:
    turns = itertools.cycle(batches)

    def call() -> None:
        batch = next(turns)
        side.step(batch)
        synchronise(batch.pixels)

    return call


def part_seconds(side: Side, batches: Sequence[Batch]) -> dict[str, float]:
    """Median seconds of each of PARTS over a few steps, cut at the features: the same work as the whole step's.

    Our loss makes its gradients in its forward; its backward only multiplies.
    """
    laps = [_laps(side, batch) for batch in itertools.islice(itertools.cycle(batches), PART_ROUNDS)]
    return {part: statistics.median(lap[index] for lap in laps) for index, part in enumerate(PARTS)}


def _laps(side: Side, batch: Batch) -> list[float]:
    marks = []

    def mark() -> None:
        synchronise(batch.pixels)
        marks.append(time.perf_counter())

    mark()
    image = side.image(batch)
    mark()
    text = side.text(batch)
    mark()
    image_leaf, text_leaf = (feature.detach().requires_grad_() for feature in (image, text))
    loss = side.loss(image_leaf, text_leaf, side.model.logit_scale.exp())
    mark()
    loss.backward()
    mark()
    text.backward(_gradient(text_leaf))
    mark()
    image.backward(_gradient(image_leaf))
    mark()
    side.update()
    side.optimizer.zero_grad()
    mark()
    return [after - before for before, after in itertools.pairwise(marks)]


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None, "the loss has a gradient for both features"
    return leaf.grad


def synchronise(like: Tensor) -> None:
    """Wait for the device that holds `like`."""
    if like.is_cuda:
        torch.cuda.synchronize()
