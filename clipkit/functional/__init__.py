# SPDX-License-Identifier: Apache-2.0
"""The losses as functions: one file each. Every one is exact over the global batch and differentiable in closed
form.
"""

from clipkit.functional.clip import clip_loss
from clipkit.functional.crd import crd_loss, soft_target_cross_entropy
from clipkit.functional.fd import fd_loss
from clipkit.functional.gd import gd_loss
from clipkit.functional.global_contrastive import global_contrastive_loss
from clipkit.functional.icl import icl_loss
from clipkit.functional.info_nce import info_nce
from clipkit.functional.linear_bce import linear_bce_with_logits
from clipkit.functional.siglip import siglip_loss

__all__ = [
    "clip_loss",
    "crd_loss",
    "fd_loss",
    "gd_loss",
    "global_contrastive_loss",
    "icl_loss",
    "info_nce",
    "linear_bce_with_logits",
    "siglip_loss",
    "soft_target_cross_entropy",
]
