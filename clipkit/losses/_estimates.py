# SPDX-License-Identifier: Apache-2.0
"""What a loss over the whole data set remembers of every sample: read for a batch, proposed by it, stored once the step
is known to count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.errors import value_error
from clipkit.functional._samples import Samples
from clipkit.parallel import Placement, Reading, SampleTable, check_table


class Proposal(NamedTuple):
    """What a batch told about its samples, and the epoch it belongs to."""

    samples: Samples
    epoch: int


class Estimates:
    """A table of samples, made at the first use, on the device and for the ranks of that time."""

    def __init__(
        self,
        num_samples: int,
        initial: Sequence[float],
        placement: Placement,
        ranks: Callable[[], ProcessGroup | None],
        backend: str | None,
    ) -> None:
        """`ranks` gives the group that shares the batch. Raises what `check_table` does."""
        check_table(num_samples, initial, placement)
        self._make = lambda device: SampleTable(
            num_samples, initial, placement=placement, group=ranks(), device=device, backend=backend or ""
        )
        self._table: SampleTable | None = None
        self._reading: tuple[Tensor, Reading] | None = None
        self._proposal: Proposal | None = None

    def table(self, device: torch.device | str | None = None) -> SampleTable:
        """The table, made on `device` if there is none yet."""
        if self._table is None:
            self._table = self._make(device)
        return self._table

    def begin(self, ids: Tensor) -> None:
        """Start to fetch the rows of these ids, where that takes other ranks."""
        table = self._on(getattr(ids, "device", None))
        if table.placement == "sharded":
            self._reading = (ids, table.begin_read(ids))

    def check(self, ids: Tensor, features: Tensor) -> None:
        """Complain about ids that do not belong to the rows of `features`, on this rank alone.

        Raises:
            TypeError, ValueError: as `SampleTable.check`; another device than the features', or another number.
        """
        self._on(features.device).check(ids)
        if len(ids) != len(features) or ids.device != features.device:
            raise value_error(
                "sample_ids",
                got=f"{len(ids)} ids on {ids.device}",
                want=f"one for each of the {len(features)} rows of image_features, on {features.device}",
                fix="pass the ids of the samples that the features belong to, on the features' device",
            )

    def read(self, ids: Tensor) -> Tensor:
        """The rows [n, columns] of checked ids: those that `begin` asked for, or fetched now."""
        begun, self._reading = self._reading, None
        if begun is not None and begun[0] is ids:
            return begun[1].wait()
        return self.table().read(ids)

    def propose(self, proposal: Proposal) -> bool:
        """Keep it for `take`; whether the one before was never taken."""
        overwritten, self._proposal = self._proposal is not None, proposal
        return overwritten

    def take(self) -> Proposal | None:
        """The last proposal, once."""
        proposal, self._proposal = self._proposal, None
        return proposal

    def save_to(self, destination: dict[str, Any], prefix: str) -> None:
        """Put the table into a module's state."""
        destination.update(self._named(prefix))

    def load_from(self, state: dict[str, Any], prefix: str) -> list[str]:
        """Fill the table from a module's state; returns the names that it lacks. Collective where blocks become
        whole.
        """
        named = self._named(prefix)
        for name, tensor in named.items():
            if name in state:
                tensor.copy_(_as_placed(state[name], tensor))
        return [name for name in named if name not in state]

    def names(self, prefix: str) -> set[str]:
        """The names of the table in a module's state."""
        return set(self._named(prefix))

    def _named(self, prefix: str) -> dict[str, Tensor]:
        return {prefix + name: tensor for name, tensor in self.table().tensors().items()}

    def _on(self, device: torch.device | None) -> SampleTable:
        table = self.table(device)
        if device is not None and table.device != device:
            table.to(device)
        return table


def _as_placed(saved: Tensor, like: Tensor) -> Tensor:
    """The same rows, whole or in blocks as `like` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor) and not isinstance(saved, DTensor):
        return distribute_tensor(saved.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return saved.full_tensor() if isinstance(saved, DTensor) and not isinstance(like, DTensor) else saved
