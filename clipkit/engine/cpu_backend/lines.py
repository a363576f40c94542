# SPDX-License-Identifier: Apache-2.0
"""What the compiled passes over lines are given, and the threads that share the lines."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from clipkit.engine.cpu_backend.threads import pool

LineArguments = tuple[int, int, bool]
"""Address, elements from line to line, whether they are fp32 and not bf16."""

SERVED = (torch.float32, torch.bfloat16)
"""Of FLOATS. fp16 on a CPU is plain torch's: its conversions are not in every instruction set, and nobody trains so."""

_FEWEST_LINES, _MOST_BLOCKS = 64, 64
"""Of a block of lines. Sums over lines are made block by block and then added up, so that they do not depend on who
made them; that many partial sums are a hundredth of what a long batch is read in.
"""


def line_of(rows: Tensor | None) -> LineArguments:
    """[rows, width] of unit inner stride; nothing for None."""
    return (0, 0, True) if rows is None else (rows.data_ptr(), rows.stride(0), rows.dtype == torch.float32)


def unit_inner_stride(rows: Tensor) -> Tensor:
    """The rows themselves, or a copy where their numbers are not side by side."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def blocks_of(lines: int) -> list[slice]:
    """Lines in blocks that depend on nothing but their number."""
    step = max(_FEWEST_LINES, -(-lines // _MOST_BLOCKS))
    return [slice(start, min(start + step, lines)) for start in range(0, lines, step)]


def over_blocks(blocks: list[slice], work: Callable[[int, slice], None]) -> None:
    """work(number, lines) for every block, by as many threads as torch uses; it must leave torch alone."""
    threads = min(torch.get_num_threads(), len(blocks))
    turns = _Turns(blocks, work)
    if threads <= 1:
        turns.take_all()
        return
    for future in [pool(torch.get_num_threads()).submit(turns.take_all) for _ in range(threads)]:
        future.result()


class _Turns:
    """Hands out blocks, one after the other."""

    def __init__(self, blocks: list[slice], work: Callable[[int, slice], None]) -> None:
        self._left = enumerate(blocks)
        self._work = work
        self._lock = threading.Lock()

    def take_all(self) -> None:
        """Work until nothing is left."""
        while (turn := self._take()) is not None:
            self._work(*turn)

    def _take(self) -> tuple[int, slice] | None:
        with self._lock:
            return next(self._left, None)
