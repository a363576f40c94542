# SPDX-License-Identifier: Apache-2.0
"""`ClipLoss`, in the place of open_clip's."""

from __future__ import annotations

from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.functional import clip_loss
from clipkit.losses._host import HostLoss, touch


class ClipLoss(HostLoss):
    """CLIP's symmetric contrastive loss over the global batch (`clipkit.clip_loss`), with open_clip's constructor and
    forward.

    Args:
        local_loss, gather_with_grad, cache_labels, use_horovod: open_clip's choices between right and wrong gradients,
            and its caches. Accepted, kept as attributes, without effect: there is one mode, and it is exact.
        rank, world_size: accepted; the batch is shared by the process group.
        label_smoothing, workspace: as in `clipkit.clip_loss`.
        group: the process group that shares the batch; None for the world once torch.distributed is initialised.
        backend: the engine's backend by name; None for the device's default.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        label_smoothing: float = 0.0,
        workspace: int | None = None,
        group: ProcessGroup | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(rank, world_size, group, backend)
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.use_horovod = use_horovod
        self.label_smoothing = label_smoothing
        self.workspace = workspace

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss, or {"contrastive_loss": loss} with `output_dict`.

        Args:
            image_features: this rank's normalised rows [n, d].
            text_features: [n, d].
            logit_scale: the multiplier, already exponentiated.
            logit_bias: a softmax does not see it; accepted, its gradient is zero.
            output_dict: return a dictionary, as open_clip's trainer asks.
        """
        loss = clip_loss(
            image_features,
            text_features,
            logit_scale,
            label_smoothing=self.label_smoothing,
            workspace=self.workspace,
            group=self.ranks(),
            backend=self.backend,
        )
        loss = touch(loss, logit_bias)
        return {"contrastive_loss": loss} if output_dict else loss
