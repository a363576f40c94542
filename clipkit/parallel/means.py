# SPDX-License-Identifier: Apache-2.0
"""A mean over rows that several ranks hold, for losses that are sums over samples."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The mean of all ranks' rows [n], equal on every rank; the mean over ranks of its gradients is the gradient.

    0 when no rank has a row.
    """
    mine = torch.stack([rows.detach().sum(), rows.new_tensor(float(rows.shape[0]))])
    ranks = 1
    if group is not None:
        dist.all_reduce(mine, group=group)
        ranks = dist.get_world_size(group)
    total, count = mine[0], mine[1].clamp(min=1)
    own = rows.sum() * (ranks / count)
    return own + (total / count - own).detach()
