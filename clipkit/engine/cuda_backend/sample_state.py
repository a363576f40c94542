# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.sample_state` by csrc/cuda/sample_state.h."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipkit.engine.cuda_backend.library import check_tensor, native, stream_for


def gather_state(table: Tensor, ids: Tensor) -> Tensor:
    """See `clipkit.engine.sample_state.gather_state`."""
    columns = _check(table, ids)
    out = table.new_empty(ids.shape + table.shape[1:])
    with stream_for(table) as stream:
        native().gather_state(*_table(table, columns), ids.data_ptr(), ids.numel(), out.data_ptr(), stream)
    return out


def advance_state(table: Tensor, ids: Tensor, log_g: Tensor, *, gamma: float, eps: float) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sample_state.advance_state`."""
    columns = _check(table, ids)
    check_tensor("log_g", log_g, table, dtype=torch.float32, shape=(*ids.shape, *table.shape[1:]))
    log_u, smoothed = torch.empty_like(log_g), torch.empty_like(log_g)
    pointers = (log_u.data_ptr(), smoothed.data_ptr())
    with stream_for(table) as stream:
        native().advance_state(
            *_table(table, columns), ids.data_ptr(), ids.numel(), log_g.data_ptr(), gamma, eps, *pointers, stream
        )
    return log_u, smoothed


def scatter_state(table: Tensor, ids: Tensor, rows: Tensor, *, skip: Tensor | None) -> None:
    """See `clipkit.engine.sample_state.scatter_state`."""
    columns = _check(table, ids)
    check_tensor("rows", rows, table, dtype=torch.float32, shape=(*ids.shape, *table.shape[1:]))
    if skip is not None:
        check_tensor("skip", skip, table, dtype=torch.float32)
    capacity = 1 << (2 * ids.numel()).bit_length()
    slots = torch.full((capacity,), -1, dtype=torch.int32, device=table.device)
    switch = 0 if skip is None else skip.data_ptr()
    with stream_for(table) as stream:
        native().scatter_state(
            *_table(table, columns),
            ids.data_ptr(),
            ids.numel(),
            rows.data_ptr(),
            slots.data_ptr(),
            capacity,
            switch,
            stream,
        )


def _check(table: Tensor, ids: Tensor) -> int:
    """Complain about what the kernels do not take; the number of columns."""
    check_tensor("table", table, table, dtype=torch.float32)
    check_tensor("ids", ids, table, dtype=torch.int64, shape=(None,))
    return math.prod(table.shape[1:])


def _table(table: Tensor, columns: int) -> tuple[int, int, int, int]:
    return table.data_ptr(), table.shape[0], columns, columns
