# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.sample_state` in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipkit.errors import value_error


def gather_state(table: Tensor, ids: Tensor) -> Tensor:
    """See `clipkit.engine.sample_state.gather_state`."""
    _check(table, ids)
    return table[ids]


def advance_state(table: Tensor, ids: Tensor, log_g: Tensor, *, gamma: float, eps: float) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sample_state.advance_state`."""
    old, log_u = gather_state(table, ids), log_g.clone()
    if gamma < 1.0:
        moved = torch.logaddexp(old + math.log1p(-gamma), log_g + math.log(gamma))
        log_u = torch.where(old.isneginf(), log_g, moved)
    return log_u, log_u.logaddexp(log_u.new_tensor(math.log(eps))) if eps > 0.0 else log_u.clone()


def scatter_state(table: Tensor, ids: Tensor, rows: Tensor, *, skip: Tensor | None) -> None:
    """See `clipkit.engine.sample_state.scatter_state`."""
    _check(table, ids)
    # A stable sort leaves equal ids in order of position: the first of each run is the lowest.
    ordered, order = ids.sort(stable=True)
    lowest = torch.empty_like(order)
    lowest[order] = order[torch.searchsorted(ordered, ordered)]
    # Every occurrence writes what the lowest one has, so the order of writing does not matter.
    new = rows[lowest]
    table[ids] = new if skip is None else torch.where(skip == 0, new, table[ids])


def _check(table: Tensor, ids: Tensor) -> None:
    """Complain about ids outside the table; on a GPU that waits for the device."""
    wrong = ids[(ids < 0) | (ids >= table.shape[0])]
    if len(wrong):
        want, fix = f"sample ids in [0, {table.shape[0]})", "size the state for the whole data set"
        raise value_error("ids", got=int(wrong[0]), want=want, fix=fix)
