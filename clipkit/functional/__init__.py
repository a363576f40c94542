# SPDX-License-Identifier: Apache-2.0
"""The losses as functions: one file each. Every one is exact over the global batch and differentiable in closed form."""

from clipkit.functional.clip import clip_loss

__all__ = ["clip_loss"]
