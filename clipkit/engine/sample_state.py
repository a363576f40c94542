# SPDX-License-Identifier: Apache-2.0
"""Per-sample state of the global contrastive losses, by sample id, without a copy to the host.

A table [samples] or [samples, columns] fp32 holds log u (columns: one per side), individual temperatures, or both; ids
are int64, [n]. Where an id occurs twice in a batch every occurrence reads the old row, and the one at the lowest
position is stored. An id outside the table reads as NaN, so that the loss shows it, and is never written: no backend
waits for the device to find out. To complain is for the owner of the table.
"""

from __future__ import annotations

from torch import Tensor

from clipkit.engine.dispatch import choose


def gather_state(table: Tensor, ids: Tensor, *, backend: str = "") -> Tensor:
    """The rows of the table [n, ...]."""
    return choose("gather_state", table, backend)(table, ids)


def advance_state(
    table: Tensor, ids: Tensor, log_g: Tensor, *, gamma: float, eps: float, backend: str = ""
) -> tuple[Tensor, Tensor]:
    """(log u', log(u' + eps)) for u' = (1-γ) u + γ g, the batch's log g [n, ...]; the table is only read.

    log u = -inf means never visited: the new value is then log g, as it always is for γ = 1. `scatter_state` stores the
    first result, once the step is known to count.
    """
    return choose("advance_state", table, backend)(table, ids, log_g, gamma=gamma, eps=eps)


def scatter_state(table: Tensor, ids: Tensor, rows: Tensor, *, skip: Tensor | None = None, backend: str = "") -> None:
    """Store rows [n, ...]; nothing at all where `skip`, one fp32 on the table's device, is not zero (a step that
    overflowed).
    """
    choose("scatter_state", table, backend)(table, ids, rows, skip=skip)
