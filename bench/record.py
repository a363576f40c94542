# SPDX-License-Identifier: Apache-2.0
"""What every result file says about where its numbers come from, and how times are taken."""

from __future__ import annotations

import ctypes
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
MIB = 1 << 20


def environment(device: str | None = None) -> dict[str, Any]:
    """Device ("cpu", "cuda"; None for a card where there is one), versions, commit and how busy the machine is."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": device_name(device),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "load": [round(average, 2) for average in os.getloadavg()],
        "cpu": processor()[0],
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "clipkit": clipkit.__version__,
        "commit": commit(),
    }


def device_name(device: str | None = None) -> str:
    """The folder of results: cpu-2core, or the card's name."""
    if torch.cuda.is_available() if device is None else device == "cuda":
        return torch.cuda.get_device_name().lower().replace(" ", "-")
    return f"cpu-{os.cpu_count()}core"


def _driver() -> str | None:
    """The NVIDIA driver's version."""
    module = Path("/proc/driver/nvidia/version")
    if not module.exists():
        return None
    words = module.read_text(encoding="utf-8", errors="replace").splitlines()[0].split()
    return next((word for word in words if word[:1].isdigit()), None)


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

    The peak since the start is no use: importing a library can have been higher. It is reset first. And what making the
    inputs left in the allocator is given back, lest a call that reuses it look smaller than it is.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = kibibytes("/proc/self/status", "VmRSS")
    call()
    return (kibibytes("/proc/self/status", "VmHWM") - before) / 1024


def kibibytes(file: str, field: str) -> int:
    """A field of one of Linux's accounts of memory."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def write(
    name: str, command: str, body: Mapping[str, Any], *, device: str | None = None, folder: Path = RESULTS
) -> Path:
    """<folder>/<device>/<name>-<date>.json; the date alone for an empty name."""
    stamp = environment(device)
    path = folder / stamp["device"] / f"{'-'.join(filter(None, (name, stamp['date'])))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_readable({"command": command, "environment": stamp, **body}), encoding="utf-8")
    return path


def _readable(result: Mapping[str, Any]) -> str:
    """JSON; of a table ("rows", which comes last then) each row is a line, so that two runs can be compared by diff."""
    rows = result.get("rows")
    if not isinstance(rows, list) or not rows:
        return json.dumps(result, indent=1) + "\n"
    head = json.dumps({name: value for name, value in result.items() if name != "rows"}, indent=1)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    return f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'
