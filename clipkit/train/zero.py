# SPDX-License-Identifier: Apache-2.0
"""ZeRO's first stage (Rajbhandari et al. 2020, §5.1): optimizer state split over ranks, everything else as under DDP.

torch's ZeroRedundancyOptimizer does it. It gives each rank whole tensors, largest first to whoever has least, so what
needs a whole tensor (LAMB's norms, Muon's factors) stays as it is. A rank updates its own tensors and sends them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

Groups = list[dict[str, Any]]


def split_over_ranks(
    groups: Groups, build: Callable[[Groups], torch.optim.Optimizer], group: dist.ProcessGroup
) -> torch.optim.Optimizer:
    """An optimizer of all of `groups` that has state for this rank's tensors only. `step` is collective.

    `param_groups` are the whole ones: rates written there reach each rank's part with the next step.

    Args:
        groups: parameters, the same on every rank, of one dtype.
        build: an optimizer of groups; it is given this rank's, some of which may be empty.
        group: the ranks.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def part(own: Groups, **_: Any) -> torch.optim.Optimizer:
        return build(own)

    # The parameters become views of one buffer for each owner: as many messages in a step as ranks, not as tensors
    # (302 in ViT-B-32), and nothing is copied for them.
    maker: Any = part
    return ZeroRedundancyOptimizer(groups, maker, process_group=group, parameters_as_bucket_view=True)


def local_part(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that has this rank's state: `optimizer` itself, unless it is split."""
    if not dist.is_initialized():
        return optimizer
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer
