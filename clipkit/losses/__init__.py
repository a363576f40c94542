# SPDX-License-Identifier: Apache-2.0
"""The losses as modules. `ClipLoss`, `SigLipLoss` and `DistillClipLoss` take open_clip's arguments, argument for
argument.
"""

from clipkit.losses.clip import ClipLoss
from clipkit.losses.distill import DistillClipLoss
from clipkit.losses.siglip import SigLipLoss

__all__ = ["ClipLoss", "DistillClipLoss", "SigLipLoss"]
