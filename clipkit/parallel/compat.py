# SPDX-License-Identifier: Apache-2.0
"""What torch.distributed calls by other names in other releases, or does not make public.

torch 2.13 deprecates the collectives `*_tensor` for `*_single`, torch 2.9 has only the former.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, distributed_c10d


def all_gather_single(
    output: Tensor, mine: Tensor, group: ProcessGroup, *, asynchronous: bool = False
) -> dist.Work | None:
    """Every rank's `mine` [k, ...], one after the other in `output` [ranks · k, ...]; asynchronous: once the result has
    been waited for.
    """
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    work: dist.Work | None = gather(output, mine, group=group, async_op=asynchronous)
    return work


def reduce_scatter_single(mine: Tensor, parts: Tensor, group: ProcessGroup) -> None:
    """The sum over ranks of this rank's block of `parts` [ranks · k, ...], in `mine` [k, ...]."""
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    scatter(mine, parts, group=group)


def resolve_group(name: str) -> ProcessGroup:
    """The process group whose `group_name` is `name`."""
    resolve: Any = distributed_c10d._resolve_process_group  # its argument is a str in torch 2.9, a NewType of str later
    return resolve(name)
