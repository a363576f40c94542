# SPDX-License-Identifier: Apache-2.0
"""The memory of a training step, measured in a process that holds one side and nothing else."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from bench.end_to_end.sides import Workbench
from bench.record import MIB, kibibytes

STEPS = 2
"""The optimizer's state is made in the first."""


def peak_mib(model: str, side: str, precision: str, rows: int, device: str) -> float | None:
    """MiB at the peak of a step: weights, gradients, optimizer state, activations. None where it is not known.

    On a card what torch has allocated; on Linux what the process has resident beyond what its libraries take.
    """
    if device == "cpu" and sys.platform != "linux":
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_peak, model, side, precision, rows, device).result()
        except (BrokenProcessPool, MemoryError, torch.OutOfMemoryError):
            return None


def _peak(model: str, side: str, precision: str, rows: int, device: str) -> float:
    bench = Workbench(model, device)
    bench.no_peer()  # imports what either side imports
    before = _resident()
    trained, batch = bench.side(side, None, precision), bench.batch(rows, 0)
    for _ in range(STEPS):
        _forget_peak(device)
        trained.step(batch)
    return torch.cuda.max_memory_allocated() / MIB if device == "cuda" else _resident("VmHWM") - before


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _resident(field: str = "VmRSS") -> float:
    return kibibytes("/proc/self/status", field) / 1024 if sys.platform == "linux" else 0.0
