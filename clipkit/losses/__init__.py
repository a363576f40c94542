# SPDX-License-Identifier: Apache-2.0
"""The losses as modules. `ClipLoss`, `SigLipLoss` and `DistillClipLoss` take open_clip's arguments, argument for
argument; `FastCLIPLoss` keeps what a global contrastive loss knows of each sample.
"""

from clipkit.losses.clip import ClipLoss
from clipkit.losses.distill import DistillClipLoss
from clipkit.losses.fastclip import FastCLIPLoss
from clipkit.losses.siglip import SigLipLoss

__all__ = ["ClipLoss", "DistillClipLoss", "FastCLIPLoss", "SigLipLoss"]
