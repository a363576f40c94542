# SPDX-License-Identifier: Apache-2.0
"""Who holds which rows of the global batch. Ranks may hold different numbers of rows, and none."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.errors import type_error, value_error
from clipkit.parallel.compat import all_gather_single, resolve_group

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
    return resolve_group(name)


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
        wants: the gradients that at least one rank wants, in an order that is the loss's own. A rank that freezes a
            tower, or has no rows, must still take part in what the others need.
    """

    group: ProcessGroup | None
    rank: int
    sizes: tuple[int, ...]
    wants: tuple[bool, ...] = ()

    @classmethod
    def of(cls, rows: Tensor, group: str, wants: tuple[bool, ...] = ()) -> Layout:
        """Agree over `group` on who holds how many rows; `rows` [n, d] is what this rank holds, `wants` what it wants.

        Every rank sends a few integers, on the CPU where the group has a CPU backend, so that the device need not be
        waited for.

        Raises:
            ValueError: on every rank alike, when ranks disagree about d or the dtype.
        """
        process_group = find_group(group)
        if process_group is None:
            return cls(None, 0, (rows.shape[0],), wants)
        dtype = zlib.crc32(str(rows.dtype).encode())
        messages = _exchange([*rows.shape, dtype, *wants], process_group, rows.device)
        sizes, all_widths, dtypes, *all_wants = zip(*messages, strict=True)
        widths = sorted(set(all_widths))
        if len(widths) > 1:
            raise value_error(
                "features",
                got=f"widths {widths} on different ranks",
                want="the same d on every rank",
                fix="use the same model on every rank",
            )
        if len(set(dtypes)) > 1:
            raise value_error(
                "features",
                got=f"{rows.dtype} on this rank, another dtype on ranks {_others(dtypes, dtype)}",
                want="the same dtype on every rank",
                fix="convert with .to(...), a rank's empty features too",
            )
        return cls(process_group, dist.get_rank(process_group), sizes, tuple(any(want) for want in all_wants))

    @classmethod
    def recall(cls, saved: Tensor, group: str) -> Layout:
        """The layout that `saved` was made from, without communication."""
        process_group = find_group(group)
        rank = 0 if process_group is None else dist.get_rank(process_group)
        numbers, ranks = saved.tolist(), world_size_of(group)
        return cls(process_group, rank, tuple(numbers[:ranks]), tuple(map(bool, numbers[ranks:])))

    def saved(self) -> Tensor:
        """Sizes and wants as an int64 CPU tensor, for an op that may only save tensors; `recall` reads it."""
        return torch.tensor([*self.sizes, *self.wants], dtype=torch.int64, device="cpu")

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


def saved_like(group: str, *, wants: int = 0) -> Tensor:
    """The shape of `Layout.saved` with so many wants, for an op's fake."""
    return torch.empty(world_size_of(group) + wants, dtype=torch.int64, device="cpu")


def _others(dtypes: Sequence[int], mine: int) -> list[int]:
    return [rank for rank, dtype in enumerate(dtypes) if dtype != mine]


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
