# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.sample_state` in plain torch: no value is looked at by the host, so a GPU need not be waited for."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gather_state(table: Tensor, ids: Tensor) -> Tensor:
    """See `clipkit.engine.sample_state.gather_state`."""
    if len(table) == 0:
        return table.new_full(ids.shape + table.shape[1:], math.nan)
    inside = _inside(table, ids)
    return torch.where(_per_row(inside, table), table[torch.where(inside, ids, 0)], math.nan)


def advance_state(table: Tensor, ids: Tensor, log_g: Tensor, *, gamma: float, eps: float) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sample_state.advance_state`."""
    old, log_u = gather_state(table, ids), log_g
    if gamma < 1.0:
        moved = torch.logaddexp(old + math.log1p(-gamma), log_g + math.log(gamma))
        log_u = torch.where(old.isneginf(), log_g, moved)
    log_u = torch.where(_per_row(_inside(table, ids), table), log_u, math.nan)
    return log_u, log_u.logaddexp(log_u.new_tensor(math.log(eps))) if eps > 0.0 else log_u.clone()


def scatter_state(table: Tensor, ids: Tensor, rows: Tensor, *, skip: Tensor | None) -> None:
    """See `clipkit.engine.sample_state.scatter_state`."""
    if len(table) == 0 or len(ids) == 0:
        return
    inside = _inside(table, ids)
    # A stable sort leaves equal ids in order of position: the first of each run is the lowest. Ids outside come last.
    ordered, order = torch.where(inside, ids, torch.iinfo(ids.dtype).max).sort(stable=True)
    lowest = torch.empty_like(order)
    lowest[order] = order[torch.searchsorted(ordered, ordered)]
    # Leaving positions out would make the shape depend on values, for which the host would have to wait. So every
    # position writes: a repeated id what its lowest position has, an id outside what the smallest id inside gets. All
    # who write to a row write the same, so the order of writing does not matter. With no id inside, and where the step
    # is skipped, rows are written as they are.
    target = torch.where(inside, ids, ordered[0]).clamp_(max=len(table) - 1)
    new = rows[torch.where(inside, lowest, order[0])]
    writes = ordered[0] < len(table)
    if skip is not None:
        writes = writes & (skip.reshape(()) == 0)
    table[target] = torch.where(writes, new, table[target])


def _inside(table: Tensor, ids: Tensor) -> Tensor:
    return (ids >= 0) & (ids < len(table))


def _per_row(flags: Tensor, table: Tensor) -> Tensor:
    """Flags [n], to be combined with rows [n, ...] of the table."""
    return flags.reshape(-1, *[1] * (table.dim() - 1))
