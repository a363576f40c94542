# SPDX-License-Identifier: Apache-2.0
"""Parameters whose size follows from the picture, the patch or the context, brought to a model of other sizes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_IMAGE_POSITIONS = ("visual.positional_embedding", "visual.attnpool.positional_embedding", "visual.pos_embed")
_TEXT_POSITIONS = "positional_embedding"
POSITIONS = (*_IMAGE_POSITIONS, _TEXT_POSITIONS)
_PATCH_KERNELS = ("visual.conv1.weight", "visual.patch_embed.proj.weight")


def fit_scalar(value: Tensor | None, parameter: Tensor) -> Tensor | None:
    """The value in the parameter's shape ([1] and 0-D are both a scalar), or None."""
    if value is None or value.shape == parameter.shape:
        return value
    return value.reshape(parameter.shape) if value.numel() == parameter.numel() == 1 else None


def fit_positions(name: str, value: Tensor, shape: torch.Size, *, antialias: bool) -> Tensor | None:
    """Learnt positions for another grid of patches or a shorter context; None where that is not what differs.

    Image: class token kept, the square grid of [1 + g * g, width] (or [1, 1 + g * g, width]) resampled bicubically,
    corners not aligned, in float32 or wider. `antialias` is open_clip's choice and not EVA-CLIP's; torch then takes
    Keys' cubic with a = -1/2, not -3/4, for a larger grid too. Text: the first rows.
    """
    if name not in POSITIONS or value.dim() != len(shape) or value.shape[-1] != shape[-1]:
        return None
    if name == _TEXT_POSITIONS:
        return value[: shape[0]] if shape[0] <= value.shape[0] else None
    rows, count = value.reshape(-1, shape[-1]), shape[:-1].numel()
    old, new = round((len(rows) - 1) ** 0.5), round((count - 1) ** 0.5)
    if len(rows) != 1 + old**2 or count != 1 + new**2 or not old or not new:
        return None
    rows = _wide(rows)
    grid = rows[1:].T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([rows[:1], grid.reshape(-1, new * new).T]).reshape(shape)


def fit_patches(name: str, value: Tensor, shape: torch.Size) -> Tensor | None:
    """A patch embedding's kernel [width, 3, p, p] for another patch size; None where that is not what differs.

    Bicubic, corners not aligned, not rescaled, as EVA-CLIP went from 14 to 16 pixels.
    """
    if name not in _PATCH_KERNELS or value.dim() != 4 or len(shape) != 4 or value.shape[:2] != shape[:2]:
        return None
    return F.interpolate(_wide(value), size=tuple(shape[2:]), mode="bicubic", align_corners=False)


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
