# SPDX-License-Identifier: Apache-2.0
"""A sweep: one function called for every tile of a pairwise form, by as many threads as torch uses.

A thread makes a whole tile by itself, products and epilogue, so that one thread's products run beside another's
epilogue and nobody waits at the end of either. Tiles that share rows or columns never run at the same time and always
one after the other in an order that the sizes alone decide: sums into rows and into columns need no locks and no
copies, and results are equal to the bit for any number of threads.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from clipkit.engine.cpu_backend.threads import pool

T = TypeVar("T")
Work = Callable[..., T]

LINES = 64
"""Tiles begin at multiples of this."""

_SMALLEST, _LARGEST, _ABREAST = 256, 512, 8
"""Lines of a tile at least and at most, and how many tiles abreast the lines are cut into in between.

512 x 512 fp32 are 1 MiB, half of a server core's second-level cache; one core's products lose 3 % of their rate from
512 down to 256 lines and 15 % at 128 (d = 512). As many threads have work as there are tiles abreast.
"""


def whole(x: Tensor, y: Tensor) -> tuple[slice, slice]:
    """All rows and all columns."""
    return slice(0, len(x)), slice(0, len(y))


def over_tiles(area: tuple[slice, slice], work: Work[T], *, like: Tensor, buffers: int = 1) -> list[T]:
    """work(rows, columns, *tiles) for every tile of these rows and columns, `tiles` being contiguous fp32 buffers of
    its shape; what it returned, in a fixed order.
    """
    order = list(_order(*map(_cuts, area)))
    if not order:
        return []
    turns = _Turns(order, functools.partial(_call, work, like, buffers))
    threads = torch.get_num_threads()
    if threads == 1:
        turns.take_all()
    else:
        helpers = min(threads, len({cut.start for cut, _ in order}), len({cut.start for _, cut in order}))
        for future in [pool(threads).submit(turns.take_all) for _ in range(helpers)]:
            future.result()
    return [turns.results[tile] for tile in range(len(order))]


def tile_in(memory: Tensor, rows: slice, columns: slice, width: int) -> Tensor:
    """A tile's own part of memory for all tiles of rows of `width` columns, contiguous: band after band of rows, and in
    a band tile after tile.
    """
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    begin = rows.start * width + shape[0] * columns.start
    return memory[begin : begin + shape[0] * shape[1]].view(shape)


def _cuts(lines: slice) -> list[slice]:
    count = lines.stop - lines.start
    step = -(-count // (_ABREAST * LINES)) * LINES
    step = min(max(step, _SMALLEST if count > 2 * _SMALLEST else _SMALLEST // 2), _LARGEST)
    return [slice(start, min(start + step, lines.stop)) for start in range(lines.start, lines.stop, step)]


def _order(bands: list[slice], strips: list[slice]) -> Iterator[tuple[slice, slice]]:
    """All pairs, diagonal by diagonal: neighbours in the order share neither rows nor columns."""
    shorter, longer = sorted((len(bands), len(strips)))
    for shift in range(longer):
        for index in range(shorter):
            shifted = (index + shift) % longer
            yield (bands[index], strips[shifted]) if len(bands) == shorter else (bands[shifted], strips[index])


def _call(work: Work[T], like: Tensor, buffers: int) -> Callable[[slice, slice], T]:
    """A thread's own function of a tile, with its own buffers."""
    made = [like.new_empty(_LARGEST * _LARGEST, dtype=torch.float32) for _ in range(buffers)]

    def call(rows: slice, columns: slice) -> T:
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        return work(rows, columns, *(buffer[: shape[0] * shape[1]].view(shape) for buffer in made))

    return call


class _Turns(Generic[T]):
    """Hands out tiles in order, each as soon as the earlier ones of its rows and of its columns are done."""

    def __init__(self, order: list[tuple[slice, slice]], start: Callable[[], Callable[[slice, slice], T]]) -> None:
        self.results: dict[int, T] = {}
        self._start = start
        self._left = deque(enumerate(order))
        self._busy_rows: set[int] = set()
        self._busy_columns: set[int] = set()
        self._change = threading.Condition()

    @torch.inference_mode()  # a thread does not inherit its caller's: it must neither record nor refuse
    def take_all(self) -> None:
        """Work until nothing is left."""
        try:
            call = self._start()
            while (turn := self._take()) is not None:
                tile, (rows, columns) = turn
                self.results[tile] = call(rows, columns)
                self._give_back(rows, columns)
        except BaseException:
            with self._change:
                self._left.clear()
                self._change.notify_all()
            raise

    def _take(self) -> tuple[int, tuple[slice, slice]] | None:
        with self._change:
            # Only the first in line may go: a later one could otherwise overtake it in the same rows.
            self._change.wait_for(lambda: not self._left or self._is_free(*self._left[0][1]))
            if not self._left:
                return None
            tile, (rows, columns) = self._left.popleft()
            self._busy_rows.add(rows.start)
            self._busy_columns.add(columns.start)
            self._change.notify_all()
            return tile, (rows, columns)

    def _is_free(self, rows: slice, columns: slice) -> bool:
        return rows.start not in self._busy_rows and columns.start not in self._busy_columns

    def _give_back(self, rows: slice, columns: slice) -> None:
        with self._change:
            self._busy_rows.discard(rows.start)
            self._busy_columns.discard(columns.start)
            self._change.notify_all()
