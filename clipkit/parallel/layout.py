# SPDX-License-Identifier: Apache-2.0
"""Who holds which rows of the global batch. Ranks may hold different numbers of rows, and none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import GroupName, _resolve_process_group

from clipkit.errors import type_error, value_error
from clipkit.parallel.compat import all_gather_single

ALONE = ""
"""The group name that stands for "this process alone"."""


def group_name(group: ProcessGroup | None) -> str:
    """The name under which an op finds its process group again; "" for this process alone.

    Ops registered with torch.library take strings, not process groups.
    """
    if group is None:
        return ALONE
    if not isinstance(group, ProcessGroup):
        raise type_error(
            "group",
            got=f"a {type(group).__name__}",
            want="a torch.distributed ProcessGroup that this rank belongs to, or None",
            fix="pass torch.distributed.group.WORLD, the result of new_group(), or None for this process alone",
        )
    return ALONE if dist.get_world_size(group) == 1 else group.group_name


def find_group(name: str) -> ProcessGroup | None:
    """The process group called `name`; None for "" (this process alone)."""
    if name == ALONE:
        return None
    return _resolve_process_group(GroupName(name))


def world_size_of(name: str) -> int:
    """How many ranks the group called `name` has."""
    return 1 if name == ALONE else dist.get_world_size(find_group(name))


@dataclass(frozen=True)
class Layout:
    """The global batch as rows held by ranks, in rank order.

    Attributes:
        group: the process group, None for this process alone.
        rank: this process's place in it.
        sizes: how many rows each rank holds.
    """

    group: ProcessGroup | None
    rank: int
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, rows: Tensor, group: str) -> Layout:
        """Agree over `group` on who holds how many rows; `rows` [n, d] is what this rank holds.

        Every rank sends (n, d), on the CPU where the group has a CPU backend, so that the device need not be waited
        for.

        Raises:
            ValueError: on every rank alike, when ranks disagree about d.
        """
        process_group = find_group(group)
        if process_group is None:
            return cls(None, 0, (rows.shape[0],))
        shapes = _exchange([rows.shape[0], rows.shape[1]], process_group, rows.device)
        widths = sorted({width for _, width in shapes})
        if len(widths) > 1:
            raise value_error(
                "features",
                got=f"widths {widths} on different ranks",
                want="the same d on every rank",
                fix="use the same model on every rank",
            )
        return cls(process_group, dist.get_rank(process_group), tuple(count for count, _ in shapes))

    @classmethod
    def recall(cls, sizes: Tensor, group: str) -> Layout:
        """The layout that `sizes_tensor` was made from, without communication."""
        process_group = find_group(group)
        rank = 0 if process_group is None else dist.get_rank(process_group)
        return cls(process_group, rank, tuple(sizes.tolist()))

    def sizes_tensor(self) -> Tensor:
        """The sizes as an int64 CPU tensor [world size], for an op that may only save tensors."""
        return torch.tensor(self.sizes, dtype=torch.int64)

    @property
    def world_size(self) -> int:
        """How many ranks share the batch."""
        return len(self.sizes)

    @property
    def total(self) -> int:
        """Rows in the global batch."""
        return sum(self.sizes)

    @property
    def start(self) -> int:
        """Global index of this rank's first row."""
        return sum(self.sizes[: self.rank])

    @property
    def mine(self) -> slice:
        """This rank's rows of the global batch."""
        return slice(self.start, self.start + self.sizes[self.rank])


def _exchange(numbers: list[int], group: ProcessGroup, device: torch.device) -> list[list[int]]:
    """All ranks' `numbers`, in rank order."""
    try:
        group._get_backend(torch.device("cpu"))
        device = torch.device("cpu")
    except RuntimeError:  # an NCCL-only group: the numbers travel on the device, at the price of waiting for it
        pass
    mine = torch.tensor(numbers, dtype=torch.int64, device=device)
    everyone = mine.new_empty(dist.get_world_size(group) * len(numbers))
    all_gather_single(everyone, mine, group)
    return everyone.view(-1, len(numbers)).tolist()
