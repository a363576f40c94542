# SPDX-License-Identifier: Apache-2.0
"""`SigLipLoss`, in the place of open_clip's."""

from __future__ import annotations

from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.functional import siglip_loss
from clipkit.losses._host import HostLoss


class SigLipLoss(HostLoss):
    """The pairwise sigmoid loss over the global batch (`clipkit.siglip_loss`), with open_clip's constructor and
    forward.

    Args:
        cache_labels, dist_impl, chunk_size: open_clip's caches, exchange schedules and chunking. Accepted, kept as
            attributes, without effect: memory is bounded and the exchange exact in any case.
        rank, world_size: accepted; the batch is shared by the process group.
        group: the process group that shares the batch; None for the world once torch.distributed is initialised.
        backend: the engine's backend by name; None for the device's default.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int | None = None,
        *,
        group: ProcessGroup | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(rank, world_size, group, backend)
        self.cache_labels = cache_labels
        self.dist_impl = dist_impl
        self.chunk_size = chunk_size

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss, or {"contrastive_loss": loss} with `output_dict`; arguments as `clipkit.siglip_loss`."""
        loss = siglip_loss(
            image_features, text_features, logit_scale, logit_bias, group=self.ranks(), backend=self.backend
        )
        return {"contrastive_loss": loss} if output_dict else loss
