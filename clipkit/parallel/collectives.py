# SPDX-License-Identifier: Apache-2.0
"""The collectives of a pairwise loss: gather rows, sum-and-scatter rows, merge log-sum-exps, sum scalars.

Unequal row counts travel padded to the largest, because gloo and NCCL want equal messages; a rank without rows takes
part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.parallel.compat import all_gather_single, reduce_scatter_single
from clipkit.parallel.layout import Layout


@dataclass(frozen=True)
class Gathering:
    """Rows on their way from every rank. `mine` is what is being sent, kept until it has arrived."""

    layout: Layout
    mine: Tensor
    arriving: Tensor
    work: dist.Work | None

    def wait(self) -> Tensor:
        """All ranks' rows in rank order, [N, ...]. On a GPU the stream waits, the host does not."""
        if self.work is not None:
            self.work.wait()
        if self.layout.total == self.arriving.shape[0]:
            return self.arriving
        blocks = self.arriving.split(max(self.layout.sizes))
        return torch.cat([block[:size] for block, size in zip(blocks, self.layout.sizes, strict=True)])


def begin_gather(rows: Tensor, layout: Layout, *, asynchronous: bool = True) -> Gathering:
    """Send this rank's rows [n, ...] to all, and go on. Alone, they have arrived."""
    if layout.group is None:
        return Gathering(layout, rows, rows, None)
    longest = max(layout.sizes)
    arriving = rows.new_empty(layout.world_size * longest, *rows.shape[1:])
    mine = _pad_rows(rows, longest)
    return Gathering(layout, mine, arriving, all_gather_single(arriving, mine, layout.group, asynchronous=asynchronous))


def gather_rows(rows: Tensor, layout: Layout) -> Tensor:
    """All ranks' rows in rank order: [n, ...] -> [N, ...]. Alone, `rows` itself."""
    return begin_gather(rows, layout, asynchronous=False).wait()


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
