# SPDX-License-Identifier: Apache-2.0
"""What the drop-in modules share: which ranks hold the batch, and arguments that a host passes but that choose nothing
here.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from clipkit.functional._checks import check_world_size


class HostLoss(nn.Module):
    """A loss over the global batch: of `group`, else of the world once torch.distributed is initialised, else of this
    process.

    `rank` and `world_size` are kept as the attributes that a host reads; the batch is the process group's whatever they
    say, and a world_size above one that contradicts the group is an error.
    """

    def __init__(self, rank: int, world_size: int, group: ProcessGroup | None, backend: str | None) -> None:
        super().__init__()
        self.rank = rank
        self.world_size = world_size
        self.group = group
        self.backend = backend

    def ranks(self) -> ProcessGroup | None:
        """The group that shares the batch.

        Raises:
            ValueError: the constructor was told of more ranks than there are, or of another number.
        """
        group = self.group
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        check_world_size(self.world_size, group)
        return group


def touch(loss: Tensor, parameter: Tensor | float | None) -> Tensor:
    """`loss`, with `parameter` in its graph at weight zero: DDP would otherwise report a parameter that got no
    gradient.
    """
    if isinstance(parameter, Tensor) and parameter.requires_grad and torch.is_grad_enabled():
        return loss + 0.0 * parameter.sum()
    return loss
