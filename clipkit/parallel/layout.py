# SPDX-License-Identifier: Apache-2.0
"""Who holds which rows of the global batch. Ranks may hold different numbers of rows, and none."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

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
    return None if name == ALONE else resolve_group(name)


class _Message(NamedTuple):
    """What a rank tells the others: of the same length for every loss, so that a refusal always finds its listeners."""

    rows: int
    width: int = 0
    dtype: int = 0
    settings: int = 0
    wants: int = 0


_REFUSED = _Message(rows=-1)
"""Sent by a rank whose arguments were refused, in the place of the message that the others send."""


@contextmanager
def announced(group: str) -> Iterator[None]:
    """Check arguments in here: an error on this rank is raised here and, at their next `Layout.of`, on the others.

    Without this they would wait in a collective for the rank that raised. Errors that every rank raises alike belong
    outside, and so does everything that communicates.
    """
    try:
        yield
    except Exception:
        if group != ALONE and not torch.compiler.is_compiling():
            _exchange(_REFUSED, resolve_group(group), device=None)
        raise


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
    def of(cls, rows: Tensor, group: str, *, wants: Sequence[bool] = (), settings: object = None) -> Layout:
        """Agree over `group` on who holds how many rows; `rows` [n, d] is what this rank holds, `wants` what it wants.

        `settings` is anything whose text must be the same on every rank: which loss this is, with which options. Every
        rank sends a few integers, on the CPU where the group has a CPU backend, so that the device need not be waited
        for.

        Raises:
            ValueError: on every rank, when one refused its arguments or ranks disagree about d, dtype or settings.
        """
        process_group = find_group(group)
        if process_group is None:
            return cls(None, 0, (rows.shape[0],), tuple(wants))
        count, width = rows.shape
        mine = _Message(
            count,
            width,
            dtype=_checksum(rows.dtype),
            settings=_checksum(settings),
            wants=sum(want << place for place, want in enumerate(wants)),
        )
        messages = _exchange(mine, process_group, rows.device)
        _check_agreement(messages, mine, process_group)
        wanted_by_any = tuple(any(message.wants >> place & 1 for message in messages) for place in range(len(wants)))
        sizes = tuple(message.rows for message in messages)
        return cls(process_group, dist.get_rank(process_group), sizes, wanted_by_any)

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


def _checksum(value: object) -> int:
    return zlib.crc32(str(value).encode())


def _exchange(mine: _Message, group: ProcessGroup, device: torch.device | None) -> list[_Message]:
    """All ranks' messages, in rank order: over the CPU if the group can, else over `device`, None for the current
    one.
    """
    try:
        group._get_backend(torch.device("cpu"))
        device = torch.device("cpu")
    except RuntimeError:  # an NCCL-only group: the numbers travel on the device, at the price of waiting for it
        device = device or torch.accelerator.current_accelerator()
    sent = torch.tensor(mine, dtype=torch.int64, device=device)
    everyone = sent.new_empty(dist.get_world_size(group) * len(mine))
    all_gather_single(everyone, sent, group)
    return [_Message(*numbers) for numbers in everyone.view(-1, len(mine)).tolist()]


def _check_agreement(messages: Sequence[_Message], mine: _Message, group: ProcessGroup) -> None:
    """The same complaint on every rank, whichever is to blame; ranks are named as the world counts them."""

    def ranks(blamed: list[bool]) -> str:
        world = [str(dist.get_global_rank(group, place)) for place, blame in enumerate(blamed) if blame]
        return f"rank{'s' if len(world) > 1 else ''} {', '.join(world)}"

    refusing = [message.rows == _REFUSED.rows for message in messages]
    if any(refusing):
        raise value_error(
            "group",
            got=f"arguments that were refused on {ranks(refusing)}",
            want="valid arguments on every rank",
            fix=f"see the error that {ranks(refusing)} raised",
        )
    if len({message.settings for message in messages}) > 1:
        others = ranks([message.settings != mine.settings for message in messages])
        raise value_error(
            "group",
            got=f"another loss, or other settings of it, on {others}",
            want="the same loss with the same settings on every rank",
            fix="make the same calls in the same order on every rank",
        )
    widths = sorted({message.width for message in messages})
    if len(widths) > 1:
        raise value_error(
            "features",
            got=f"widths {widths} on different ranks",
            want="the same d on every rank",
            fix="use the same model on every rank",
        )
    if len({message.dtype for message in messages}) > 1:
        raise value_error(
            "features",
            got=f"another dtype than this rank's on {ranks([message.dtype != mine.dtype for message in messages])}",
            want="the same dtype on every rank",
            fix="convert with .to(...), a rank's empty features too",
        )
