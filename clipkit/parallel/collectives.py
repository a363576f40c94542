# SPDX-License-Identifier: Apache-2.0
"""The collectives of a pairwise loss: gather rows, sum-and-scatter rows, merge log-sum-exps, sum scalars.

Unequal row counts travel padded to the largest, because gloo and NCCL want equal messages; a rank without rows takes
part.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.parallel.compat import all_gather_single, reduce_scatter_single
from clipkit.parallel.layout import Layout


def gather_rows(rows: Tensor, layout: Layout) -> Tensor:
    """All ranks' rows in rank order: [n, ...] -> [N, ...]. Alone, `rows` itself."""
    if layout.group is None:
        return rows
    longest = max(layout.sizes)
    gathered = rows.new_empty(layout.world_size * longest, *rows.shape[1:])
    all_gather_single(gathered, _pad_rows(rows, longest), layout.group)
    if layout.total == gathered.shape[0]:
        return gathered
    return torch.cat([block[:size] for block, size in zip(gathered.split(longest), layout.sizes, strict=True)])


def scatter_sum_rows(partial: Tensor, layout: Layout) -> Tensor:
    """Sum every rank's [N, ...] and keep this rank's rows: [n, ...]. Alone, `partial` itself."""
    if layout.group is None:
        return partial
    longest = max(layout.sizes)
    blocks = [_pad_rows(block, longest) for block in partial.split(layout.sizes)]
    mine = partial.new_empty(longest, *partial.shape[1:])
    reduce_scatter_single(mine, torch.cat(blocks), layout.group)
    return mine[: layout.sizes[layout.rank]]


def logaddexp_over_ranks(values: Tensor, layout: Layout) -> Tensor:
    """log of the sum over ranks of exp(values), elementwise; -inf stands for an empty sum. Alone, `values` itself."""
    if layout.group is None:
        return values
    largest = values.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=layout.group)
    # An empty sum has no finite offset: shift by 0 there, exp(-inf - 0) is the 0 that belongs in the sum.
    offset = torch.where(largest.isneginf(), 0.0, largest)
    total = (values - offset).exp_()
    dist.all_reduce(total, group=layout.group)
    return total.log_().add_(offset)


def sum_over_ranks(values: Tensor, layout: Layout) -> Tensor:
    """The sum over ranks, elementwise and equal on every rank. Alone, `values` itself."""
    if layout.group is None:
        return values
    total = values.clone()
    dist.all_reduce(total, group=layout.group)
    return total


def _pad_rows(rows: Tensor, count: int) -> Tensor:
    if rows.shape[0] == count:
        return rows.contiguous()
    padded = rows.new_zeros(count, *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    return padded
