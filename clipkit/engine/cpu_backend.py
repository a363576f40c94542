# SPDX-License-Identifier: Apache-2.0
"""The compiled CPU backend: products by torch's BLAS into a cache-sized tile, then one fused C++ pass over it.

The exponential family only. A pass makes row and column statistics from one exponential per logit, where plain torch
streams the tile through memory for each of maximum, exponential and sum, twice.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from clipkit.engine import torch_backend
from clipkit.engine.torch_backend.tiles import Form, positives

T = TypeVar("T")

SWEEPS = ("exponential_products", "log_sum_exps")

_TILE_ROWS = 512
_TILE_COLUMNS = 2048
"""4 MiB of fp32: a tile made by the matrix product is still in the second-level cache when the epilogue reads it."""


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve such tensors here, or None."""
    if device.type != "cpu":
        return "it computes on the CPU"
    if dtype == torch.float64:
        return "its epilogue is fp32"
    return _native()[1]


@functools.cache
def _native() -> tuple[ModuleType | None, str | None]:
    try:
        from clipkit import _native as module
    except ImportError as error:
        return None, f"clipkit was installed without its compiled part ({error})"
    return module, None


def _compiled() -> ModuleType:
    module, _ = _native()
    assert module is not None, "dispatch asks obstacle() first"
    return module


def log_sum_exps(x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.log_sum_exps`."""
    form, factor = Form.of(x, y, scale), float(scale)
    if not factor > 0.0:  # the positives' mask, -inf before the epilogue scales it, would not stay -inf
        return torch_backend.log_sum_exps(x, y, scale, diagonal=diagonal)
    row_lse, column_lse = form.x.new_full((x.shape[0],), -torch.inf), form.x.new_full((y.shape[0],), -torch.inf)
    buffer = _buffer(form)
    for rows, columns in _tiles(form):
        tile = _products(form, rows, columns, buffer)
        if diagonal is not None:
            positives(tile, rows, diagonal - columns.start).fill_(-torch.inf)
        strips = _over_strips(tile, functools.partial(_strip_statistics, tile, factor))
        across = torch.cat([strip_rows for strip_rows, _ in strips])
        torch.logaddexp(row_lse[rows], across, out=row_lse[rows])
        for _, down in strips:
            torch.logaddexp(column_lse[columns], down, out=column_lse[columns])
    return row_lse, column_lse


def exponential_products(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    *,
    row_offset: Tensor | None,
    column_offset: Tensor | None,
    diagonal: int,
    diagonal_weight: Tensor,
    want_x: bool,
    want_y: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.exponential_products`."""
    form, factor = Form.of(x, y, scale), float(scale)
    # An offset of +inf makes its exponential vanish: the one-directional forms need no second epilogue.
    row_offset = form.x.new_full((x.shape[0],), torch.inf) if row_offset is None else row_offset.contiguous()
    column_offset = form.x.new_full((y.shape[0],), torch.inf) if column_offset is None else column_offset.contiguous()
    g_y = torch.zeros_like(form.x) if want_x else None
    gt_x = torch.zeros_like(form.y) if want_y else None
    buffer = _buffer(form)
    for rows, columns in _tiles(form):
        tile = _products(form, rows, columns, buffer)
        _over_strips(tile, functools.partial(_strip_gradient, tile, factor, row_offset[rows], column_offset[columns]))
        entries = positives(tile, rows, diagonal - columns.start)
        first = max(0, columns.start - diagonal - rows.start)
        entries.copy_(diagonal_weight[rows][first : first + entries.shape[0]])
        if g_y is not None:
            g_y[rows].addmm_(tile, form.y[columns])
        if gt_x is not None:
            gt_x[columns].addmm_(tile.T, form.x[rows])
    return g_y, gt_x


def _tiles(form: Form) -> Iterator[tuple[slice, slice]]:
    def cuts(size: int, step: int) -> list[slice]:
        return [slice(start, min(start + step, size)) for start in range(0, size, step)]

    return itertools.product(cuts(form.x.shape[0], _TILE_ROWS), cuts(form.y.shape[0], _TILE_COLUMNS))


def _buffer(form: Form) -> Tensor:
    return form.x.new_empty(_TILE_ROWS * _TILE_COLUMNS)


def _products(form: Form, rows: slice, columns: slice, buffer: Tensor) -> Tensor:
    """The unscaled products of a tile, in the buffer; the epilogue scales them in fp32."""
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    return torch.mm(form.x[rows], form.y[columns].T, out=buffer[: shape[0] * shape[1]].view(shape))


def _over_strips(tile: Tensor, work: Callable[[slice], T]) -> list[T]:
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


def _strip_statistics(tile: Tensor, factor: float, strip: slice) -> tuple[Tensor, Tensor]:
    part = tile[strip]
    rows, columns = part.shape
    row_offset, row_sum = part.new_empty(2, rows)
    column_offset, column_sum = part.new_empty(2, columns)
    outputs = [out.data_ptr() for out in (row_offset, row_sum, column_offset, column_sum)]
    _compiled().clip_tile_statistics(part.data_ptr(), part.stride(0), rows, columns, factor, *outputs)
    return _lse(row_offset, row_sum), _lse(column_offset, column_sum)


def _lse(offset: Tensor, total: Tensor) -> Tensor:
    """log(total) + offset, and -inf for a line in which nothing was left to sum."""
    return torch.where(offset.isneginf(), offset, total.log_().add_(offset))


def _strip_gradient(tile: Tensor, factor: float, row_offset: Tensor, column_offset: Tensor, strip: slice) -> None:
    part = tile[strip]
    rows, columns = part.shape
    outside = columns  # the positives' weights are written afterwards, from their own formula
    offsets = (row_offset[strip].data_ptr(), column_offset.data_ptr())
    _compiled().clip_tile_gradient(part.data_ptr(), part.stride(0), rows, columns, factor, *offsets, outside)
