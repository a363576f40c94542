# SPDX-License-Identifier: Apache-2.0
"""How evaluation is cut over ranks, and the few collectives it needs.

The unit dealt to ranks is the batch, never the sample: batch b goes to rank b mod world. A batch therefore holds the
same samples on every world size, its features come out of the same matrix products, and the counts made from them are
equal to the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Shards:
    """This process's place in `group`; `group=None` is this process alone."""

    group: dist.ProcessGroup | None = None

    @property
    def rank(self) -> int:
        """Rank within the group, 0 alone."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def world_size(self) -> int:
        """Number of ranks, 1 alone."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def batches(self, total: int, batch_size: int) -> list[range]:
        """The index ranges that this rank computes, as many on every rank.

        Ranks that run out get empty ranges: the forward of a sharded model (FSDP) is itself a collective, so a rank
        that made fewer calls would leave the others waiting.
        """
        count = -(-total // batch_size)
        rounds = -(-count // self.world_size)
        starts = [(turn * self.world_size + self.rank) * batch_size for turn in range(rounds)]
        return [range(min(start, total), min(start + batch_size, total)) for start in starts]

    def sum(self, counts: Tensor) -> Tensor:
        """Integer counts added over ranks, in place."""
        if self.group is not None:
            dist.all_reduce(counts, dist.ReduceOp.SUM, group=self.group)
        return counts

    def maximum(self, values: Tensor) -> Tensor:
        """Elementwise maximum over ranks, in place."""
        if self.group is not None:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def gather_rows(self, rows: Tensor) -> Tensor:
        """All ranks' rows [n_r, ...] one after another in rank order; ranks may hold different numbers, also none."""
        if self.group is None:
            return rows
        sizes = torch.zeros(self.world_size, dtype=torch.int64, device=rows.device)
        sizes[self.rank] = len(rows)
        lengths = [int(size) for size in self.sum(sizes)]
        longest = max(lengths)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(received, padded, group=self.group)
        return torch.cat([block[:length] for block, length in zip(received, lengths, strict=True)])

    def gather_lines(self, lines: Sequence[str], device: torch.device) -> list[str]:
        """All ranks' lines of text (without line breaks) in rank order, sent as bytes through `device`."""
        if self.group is None:
            return list(lines)
        payload = bytearray("".join(line + "\n" for line in lines).encode())
        rows = torch.frombuffer(payload, dtype=torch.uint8) if payload else torch.empty(0, dtype=torch.uint8)
        return bytes(self.gather_rows(rows.to(device)).tolist()).decode().split("\n")[:-1]
