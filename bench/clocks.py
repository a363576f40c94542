# SPDX-License-Identifier: Apache-2.0
"""How a call is timed, and how much memory it needs at its peak, on each kind of device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from bench.record import MIB, peak_extra_mib

Call = Callable[[], object]
Clock = Callable[[Call], float]
FLUSH_BYTES = 256 * MIB
"""More than any card's L2 cache: 50 MiB on H100, 126 on B200."""


def host_clock(call: Call) -> float:
    """Seconds by the host's clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def card_clock() -> Clock:
    """Seconds between two events of the stream, from an empty L2 cache.

    The write that empties the cache takes the card about 0.1 ms; the host uses it to get ahead, so that the launches of
    a short call are not what is measured.
    """
    scratch = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def clock(call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        scratch.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return clock


def clock_for(device: str) -> Clock:
    """The clock of "cpu" or "cuda"."""
    return card_clock() if device == "cuda" else host_clock


def peak_mib(call: Call, device: str) -> float:
    """MiB that `call` needs at its peak beyond what is allocated before it, what it returns included."""
    if device == "cpu":
        return peak_extra_mib(call)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB
