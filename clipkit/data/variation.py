# SPDX-License-Identifier: Apache-2.0
"""Random geometry and colour of a whole batch of small pictures at once; each picture's numbers belong to its id."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clipkit.data.hashing import uniform
from clipkit.data.pictures import Pixels

Numbers = NDArray[np.float64]
_TURN, _ZOOM, _ASPECT, _ACROSS, _DOWN, _CONTRAST, _SATURATION, _BRIGHTNESS = range(30, 38)  # what a number is for
_ASPECT_SHARE = 0.5  # how much of `zoom` the two sides may differ by: pictures stay recognisable
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Draws:
    """The random numbers of a batch: for each purpose one number in [-1, 1) per id."""

    def __init__(self, seed: int, epoch: int, ids: NDArray[np.int64]) -> None:
        self._key = (seed, epoch, ids)

    def symmetric(self, purpose: int) -> Numbers:
        """[n] numbers in [-1, 1)."""
        seed, epoch, ids = self._key
        return 2 * uniform(seed, epoch, purpose, ids) - 1


def warp(pixels: Pixels, draws: Draws, *, shift: int, rotate: float, zoom: float) -> Pixels:
    """Turn, zoom and move each picture of uint8 [n, size, size, 3] about its centre, bilinear, edges repeated.

    rotate: up to so many degrees either way. zoom: the sides grow or shrink by a factor up to 1 + zoom, and differ from
    each other by up to half as much. shift: pixels, here not only whole ones.
    """
    angle = draws.symmetric(_TURN) * math.radians(rotate)
    size, stretch = (1 + zoom) ** -draws.symmetric(_ZOOM), (1 + zoom * _ASPECT_SHARE) ** (draws.symmetric(_ASPECT) / 2)
    across, down = (draws.symmetric(purpose) * shift * 2 / pixels.shape[1] for purpose in (_ACROSS, _DOWN))
    cos, sin = np.cos(angle), np.sin(angle)
    where_from = np.stack(
        [size * stretch * cos, -size * stretch * sin, across, size / stretch * sin, size / stretch * cos, down], axis=1
    )
    planes = _planes(pixels).float()
    grid = F.affine_grid(torch.from_numpy(where_from).float().view(-1, 2, 3), list(planes.shape), align_corners=False)
    warped = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return _rounded(warped)


def recolour(pixels: Pixels, draws: Draws, strength: float) -> Pixels:
    """Change contrast, saturation and brightness of each picture of uint8 [n, size, size, 3].

    Contrast (about the picture's mean) and saturation (about its grey) are multiplied by a factor up to 1 + strength or
    divided by one; then up to strength / 4 of the range is added to or taken from all channels.
    """
    planes = _planes(pixels).float()
    grey = (planes * torch.tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    contrast, saturation = (_column((1 + strength) ** draws.symmetric(purpose)) for purpose in (_CONTRAST, _SATURATION))
    offset = _column(draws.symmetric(_BRIGHTNESS) * 255 * strength / 4)
    return _rounded((grey + (planes - grey) * saturation - mean) * contrast + mean + offset)


def _planes(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _rounded(planes: Tensor) -> Pixels:
    return planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _column(numbers: Numbers) -> Tensor:
    return torch.from_numpy(numbers).float().view(-1, 1, 1, 1)
