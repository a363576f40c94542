# SPDX-License-Identifier: Apache-2.0
"""What every result file says about where its numbers come from, and how times are taken."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import clipkit
from clipkit.machine import commit, processor

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Device, versions and commit."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": device_name(),
        "cpu": processor()[0],
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "clipkit": clipkit.__version__,
        "commit": commit(),
    }


def device_name() -> str:
    """The folder of results: cpu-2core, or the card's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().lower().replace(" ", "-")
    return f"cpu-{os.cpu_count()}core"


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, one after the other and round again, so that a machine's drift meets all alike."""
    for call in calls.values():
        call()  # warm-up: allocation, caches, lazy imports
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "runs": len(seconds)}


def peak_extra_mib(call: Callable[[], object]) -> float:
    """MiB by which `call` raises this process's resident memory at its peak, by the kernel's own account (Linux).

    The peak since the start is no use: importing a library can have been higher. It is reset first.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kib("VmRSS")
    call()
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def write(name: str, command: str, body: Mapping[str, Any]) -> Path:
    """bench/results/<device>/<name>-<date>.json."""
    stamp = environment()
    path = RESULTS / stamp["device"] / f"{name}-{stamp['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": command, "environment": stamp, **body}, indent=1) + "\n")
    return path
