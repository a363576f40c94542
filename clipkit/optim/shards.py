# SPDX-License-Identifier: Apache-2.0
"""Over which ranks the parts of a tensor are spread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard_dims(tensor: Tensor) -> list[tuple[DeviceMesh, int]]:
    """The dimensions of device meshes that a DTensor is cut along; none for replicas and for plain tensors.

    A sum over the parts of a tensor is one over these dimensions' groups, and over no other: under HSDP the
    mesh's first dimension holds whole copies, each of which would count again.
    """
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return []
    return [
        (tensor.device_mesh, dim) for dim, placement in enumerate(tensor.placements) if not placement.is_replicate()
    ]
