# SPDX-License-Identifier: Apache-2.0
"""The tiles that cover a pairwise form, the buffer they are made in, and threads over strips of a tile."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_TILE_ROWS = 512
_TILE_COLUMNS = 2048
"""4 MiB of fp32: a tile made by the matrix product is still in the second-level cache when the epilogue reads it."""


def tiles(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of the tiles that cover x yᵀ, band of rows by band of rows."""

    def cuts(size: int, step: int) -> list[slice]:
        return [slice(start, min(start + step, size)) for start in range(0, size, step)]

    return itertools.product(cuts(x.shape[0], _TILE_ROWS), cuts(y.shape[0], _TILE_COLUMNS))


def new_buffer(like: Tensor) -> Tensor:
    """Room for the largest tile."""
    return like.new_empty(_TILE_ROWS * _TILE_COLUMNS, dtype=torch.float32)


def tile_in(buffer: Tensor, rows: slice, columns: slice) -> Tensor:
    """The beginning of the buffer as a contiguous tile."""
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    return buffer[: shape[0] * shape[1]].view(shape)


def over_strips(tile: Tensor, work: Callable[[slice], T]) -> list[T]:
    """Share the tile's rows among as many threads as torch uses; the compiled pass releases the interpreter."""
    height, threads = tile.shape[0], torch.get_num_threads()
    step = -(-height // threads)
    strips = [slice(start, min(start + step, height)) for start in range(0, height, step)]
    if len(strips) == 1:
        return [work(strips[0])]
    return list(_pool(threads).map(work, strips))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="clipkit")
