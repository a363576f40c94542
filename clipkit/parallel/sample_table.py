# SPDX-License-Identifier: Apache-2.0
"""A few fp32 numbers for every sample of a data set, by sample id: on every rank, or in blocks, each with one owner.

What a loss remembers of its samples from one visit to the next (FastCLIP: log u of both sides, individual temperatures
and their moments). A row of the table is one sample: reading it touches one or two cache lines, however many columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine.sample_state import gather_state, scatter_state
from clipkit.errors import type_error, value_error
from clipkit.parallel.collectives import Gathering, begin_gather, scatter_sum_rows
from clipkit.parallel.layout import ALONE, Layout, announced, group_name

Placement = Literal["auto", "replicated", "sharded"]

REPLICATED_BYTES = 256 << 20
"""The largest table that "auto" puts on every rank. A replicated table costs no collective, and memory on every rank; a
sharded one costs two small collectives a read, whatever its size. Up to here memory is 0.3 % of a card of 80 GB, and
the one rank that writes it to a checkpoint takes 1.4 s (183 MiB/s, measured by bench.sample_table): it holds log u of
33 million samples (all of CC12M), or the eight columns of individual temperatures for 8 million.
"""


class SampleTable:
    """Rows [num_samples, columns] of fp32, by dense int64 id.

    Every rank makes the table with the same arguments. Sharded, rank r of K owns the ids from r ⌈num_samples / K⌉ on
    (the blocks of a DTensor's Shard(0): the last may be short or empty).
    """

    def __init__(
        self,
        num_samples: int,
        initial: Sequence[float],
        *,
        placement: Placement = "auto",
        group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        backend: str = "",
    ) -> None:
        """Allocate and fill the table.

        Args:
            num_samples: ids are 0 <= id < num_samples.
            initial: what each column starts with; its length is the number of columns.
            placement: "replicated" (the whole table on every rank), "sharded" (each rank a block), or "auto":
                replicated up to REPLICATED_BYTES. One rank alone holds everything: that is called "replicated".
            group: the ranks that share the table; None for this process alone.
            device: where this rank's part lives; if None torch's default device, or the accelerator where the group of
                a sharded table carries nothing else (NCCL alone).
            backend: of the engine's `gather_state` and `scatter_state`, by name; "" for the device's default.

        Raises:
            TypeError, ValueError: an argument is not as described, or the group has no backend for the device.
        """
        check_table(num_samples, initial, placement)
        self.num_samples, self.columns = num_samples, len(initial)
        self._group_name = group_name(group)
        self._group, self.backend = group, backend
        fits = 4 * num_samples * self.columns <= REPLICATED_BYTES
        replicated = self._group_name == ALONE or placement == "replicated" or (placement == "auto" and fits)
        self.placement: Literal["replicated", "sharded"] = "replicated" if replicated else "sharded"
        start, stop = (0, num_samples) if replicated else _block(num_samples, group)
        self._start = start
        if device is None and not replicated:
            device = _home(group)
        self._rows = torch.empty(stop - start, self.columns, dtype=torch.float32, device=device)
        self._rows.copy_(torch.tensor(initial, dtype=torch.float32))
        if not replicated:
            _check_backend(group, self._rows.device)

    @property
    def device(self) -> torch.device:
        """Where this rank's part lives; ids and rows come and go there."""
        return self._rows.device

    @property
    def bytes(self) -> int:
        """Memory of this rank's part."""
        return self._rows.nbytes

    def to(self, device: torch.device | str) -> None:
        """Move this rank's part; tensors that `tensors` gave before do not follow."""
        self._rows = self._rows.to(device)

    def read(self, ids: Tensor) -> Tensor:
        """Rows [n, columns] of this rank's ids [n]; NaN for an id outside the table. See `begin_read`."""
        return self.begin_read(ids).wait()

    def begin_read(self, ids: Tensor) -> Reading:
        """Start to read the rows of this rank's ids [n]; ranks may ask for different numbers of them, and none.

        Collective where the table is sharded: for b ids on each of K ranks every rank receives 8 (K-1) b bytes of ids
        and 4 (K-1) b columns of rows, however large the table (gloo carries the rows twice: its reduce-scatter is an
        all-reduce), besides 40 bytes from each with which ranks agree on b. The ids travel while the caller goes on;
        the rows when they are waited for.

        Raises:
            TypeError, ValueError: as `check`; where the table is sharded, then on every rank: with the other ranks'
            own error there. Do not put a sharded read inside `announced`.
        """
        if self.placement == "replicated":
            self._check_here(ids)
            return Reading(self, ids, None)
        with announced(self._group_name):
            self._check_here(ids)
        settings = ("sample table", self.num_samples, self.columns)
        layout = Layout.of(ids.unsqueeze(1), self._group_name, settings=settings)
        return Reading(self, ids, begin_gather(ids, layout))

    def held(self, ids: Tensor) -> Tensor:
        """Rows [N, columns] of those ids [N] that this rank holds, NaN for the others. No collective, no waiting.

        Raises:
            TypeError, ValueError: as `check`.
        """
        self._check_here(ids)
        return gather_state(self._rows, self._local(ids), backend=self.backend)

    def write(self, ids: Tensor, rows: Tensor, *, skip: Tensor | None = None) -> None:
        """Store rows [N, columns] at ids [N], the global batch, the same and in the same order on every rank.

        Each rank stores what it holds and passes over the rest: no collective, no waiting. Of equal ids the one at the
        lowest position is stored. Where `skip` (one number) is not zero nothing is: a step that overflowed.

        Raises:
            TypeError, ValueError: as `check`, or rows and skip of another shape or device; before anything is stored.
        """
        self._check_here(ids)
        if rows.shape != (len(ids), self.columns) or not rows.is_floating_point() or rows.device != self.device:
            want = f"floating [{len(ids)}, {self.columns}] on {self.device}"
            fix = "pass a row for each id of the global batch, in the order of the ids"
            raise value_error("rows", got=_described(rows), want=want, fix=fix)
        if skip is not None and (skip.numel() != 1 or skip.device != self.device):
            fix = "pass what the step's own check of its gradients found"
            raise value_error("skip", got=_described(skip), want=f"one number on {self.device}", fix=fix)
        flag = None if skip is None else (skip != 0).float()
        scatter_state(self._rows, self._local(ids), rows.detach().float().contiguous(), skip=flag, backend=self.backend)

    def tensors(self) -> dict[str, Tensor]:
        """The table for a checkpoint: one tensor [num_samples, columns], a DTensor where it is sharded.

        It shares the table's memory: what is loaded into it in place is in the table. A checkpoint written with one
        placement and world size can be read with any other. What that takes for a while, besides the table: to write a
        part, 8 bytes for each of its rows (torch 2.13 numbers a DTensor's rows; a tensor for each column would be
        copied whole); to read, as much as a part as it was written, or two where a rank's rows lie in several, since
        torch reads a part in one piece, however little of it is wanted.
        """
        if self.placement == "replicated":
            return {"rows": self._rows}
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor, Shard

        assert self._group is not None
        mesh = DeviceMesh.from_group(self._group, self.device.type)
        shape, stride = torch.Size((self.num_samples, self.columns)), (self.columns, 1)
        return {"rows": DTensor.from_local(self._rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)}

    def check(self, ids: Tensor) -> None:
        """Complain about ids [n] that are not int64, or on the CPU and out of range.

        Ids on another device are not looked at, since the host would have to wait for it: out of range they read as
        NaN, which the loss then shows, and are never written. Check them before they are moved.

        Raises:
            TypeError: not an int64 tensor.
            ValueError: not one dimension, or an id outside 0 <= id < num_samples.
        """
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
            got = _described(ids) if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
            raise type_error("sample_ids", got=got, want="an int64 tensor", fix="convert with .long()")
        if ids.dim() != 1:
            raise value_error("sample_ids", got=_described(ids), want="one dimension [n]", fix="flatten it")
        if ids.device.type != "cpu" or torch.compiler.is_compiling():
            return
        wrong = torch.nonzero((ids < 0) | (ids >= self.num_samples))
        if len(wrong):
            raise value_error(
                "sample_ids",
                got=f"{int(ids[wrong[0]])} at position {int(wrong[0])}",
                want=f"0 <= id < {self.num_samples}, the number of samples that the table was made for",
                fix="number the samples of the data set from 0 on, and make the table for all of them",
            )

    def _check_here(self, ids: Tensor) -> None:
        self.check(ids)
        if ids.device != self.device:
            want, fix = f"ids on {self.device}, as the table", f"move the ids to {self.device}"
            raise value_error("sample_ids", got=_described(ids), want=want, fix=fix)

    def _local(self, ids: Tensor) -> Tensor:
        """Ids within this rank's part; those of other ranks lie outside of it."""
        return (ids - self._start if self._start else ids).contiguous()

    def _holds(self, ids: Tensor) -> Tensor:
        return (ids >= self._start) & (ids < self._start + len(self._rows))


class Reading:
    """Rows on their way to this rank."""

    def __init__(self, table: SampleTable, ids: Tensor, asked: Gathering | None) -> None:
        """`asked`: all ranks' ids on their way, None where this rank holds every row."""
        self._table, self._ids, self._asked = table, ids, asked
        self._rows: Tensor | None = None

    def wait(self) -> Tensor:
        """The rows [n, columns], as they are when first waited for. Collective; the host does not wait for a GPU."""
        if self._rows is None:
            self._rows = self._table.held(self._ids) if self._asked is None else self._exchanged(self._asked)
        return self._rows

    def _exchanged(self, asked: Gathering) -> Tensor:
        """Each id has one owner. The others contribute zero bits, and the sum is of integers: whatever the owner has
        (-inf, -0.0, NaN) arrives as it is.
        """
        table, wanted = self._table, asked.wait()
        answers = gather_state(table._rows, table._local(wanted), backend=table.backend).view(torch.int32)
        answers = answers.masked_fill(~table._holds(wanted).unsqueeze(1), 0)
        rows = scatter_sum_rows(answers, asked.layout).view(torch.float32)
        known = (self._ids >= 0) & (self._ids < table.num_samples)
        return torch.where(known.unsqueeze(1), rows, math.nan)


def _block(num_samples: int, group: ProcessGroup | None) -> tuple[int, int]:
    """The ids that this rank owns, from the first to before the second."""
    size = math.ceil(num_samples / dist.get_world_size(group))
    start = min(dist.get_rank(group) * size, num_samples)
    return start, min(start + size, num_samples)


def check_table(num_samples: int, initial: Sequence[float], placement: str) -> None:
    """The arguments of a `SampleTable`, before there is one.

    Raises:
        TypeError, ValueError: one is not as described there.
    """
    if not isinstance(num_samples, int) or isinstance(num_samples, bool):
        fix = "pass the number of samples of the data set"
        raise type_error("num_samples", got=f"a {type(num_samples).__name__}", want="an int", fix=fix)
    if num_samples < 1:
        fix = "pass the number of samples of the data set"
        raise value_error("num_samples", got=num_samples, want="at least 1", fix=fix)
    if len(initial) == 0:
        fix = "pass one number for each column"
        raise value_error("initial", got="nothing", want="what each column starts with", fix=fix)
    if placement not in ("auto", "replicated", "sharded"):
        want = "'auto', 'replicated' or 'sharded'"
        raise value_error("placement", got=repr(placement), want=want, fix="leave it out to choose by size")


def _home(group: ProcessGroup | None) -> torch.device | None:
    """Where a table goes that nobody has put anywhere, such as one that a checkpoint is read into before any batch."""
    default = torch.get_default_device()
    return default if _carries(group, default) else torch.accelerator.current_accelerator()


def _carries(group: ProcessGroup | None, device: torch.device) -> bool:
    assert group is not None
    try:
        group._get_backend(device)
    except RuntimeError:
        return False
    return True


def _check_backend(group: ProcessGroup | None, device: torch.device) -> None:
    """Complain where the group cannot carry the table's tensors."""
    if not _carries(group, device):
        raise value_error(
            "device",
            got=f"{device}, for which the process group has no backend",
            want="a device whose tensors the group can send",
            fix="put the table on the device that the group was made for, or make the group with 'cpu:gloo,cuda:nccl'",
        )


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
