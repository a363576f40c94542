# SPDX-License-Identifier: Apache-2.0
"""`DistillClipLoss`, in the place of open_clip's."""

from __future__ import annotations

from torch import Tensor

from clipkit.functional import clip_loss, soft_target_cross_entropy
from clipkit.losses.clip import ClipLoss


class DistillClipLoss(ClipLoss):
    """CLIP's loss plus the cross-entropy under a fixed teacher's softmaxes; open_clip's constructor (`ClipLoss`'s) and
    forward.
    """

    def forward(  # type: ignore[override]
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: Tensor | float,
        output_dict: bool = False,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """(contrastive loss, distillation loss), or both in a dictionary.

        Args:
            image_features: this rank's normalised student rows [n, d].
            text_features: [n, d].
            logit_scale: the student's multiplier, already exponentiated.
            dist_image_features: the teacher's rows [n, e], constants.
            dist_text_features: [n, e].
            dist_logit_scale: the teacher's multiplier.
            output_dict: return {"contrastive_loss": ..., "distill_loss": ...}.
        """
        group = self.ranks()
        contrastive = clip_loss(
            image_features,
            text_features,
            logit_scale,
            label_smoothing=self.label_smoothing,
            group=group,
            backend=self.backend,
        )
        distill = soft_target_cross_entropy(
            image_features,
            text_features,
            logit_scale,
            dist_image_features,
            dist_text_features,
            dist_logit_scale,
            group=group,
            backend=self.backend,
        )
        if output_dict:
            return {"contrastive_loss": contrastive, "distill_loss": distill}
        return contrastive, distill
