# SPDX-License-Identifier: Apache-2.0
"""From picture bytes to square pixels of the model's size; what is random is a function of (seed, epoch, id)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipkit.data.hashing import uniform
from clipkit.data.pictures import Pixels, decode_image
from clipkit.data.variation import Draws, recolour, warp
from clipkit.errors import value_error

_SHIFT_X, _SHIFT_Y, _FLIP, _AREA, _RATIO, _LEFT, _TOP = range(10, 17)  # what a random number is for
_CROP_TRIES = 10
_RATIOS = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class ImageTransform:
    """Decode, make square, vary.

    size: pixels per side of what comes out. mean, std: the model's normalisation, applied when a batch moves to its
    device. resize: "crop" (shorter side to `size`, then the centre; open_clip's evaluation) or "squash".
    Variation, only with `train`: `crop_scale=(low, high)` takes a random part of that share of the picture's area
    (open_clip's training uses (0.9, 1.0)); `shift` moves by up to so many pixels each way, edges repeated (None:
    size // 16, or 0 where crop_scale is given); `flip` is the probability of a mirror image (off: text and hands have
    a direction); `rotate` (degrees either way), `zoom` (sides grow or shrink by up to this share) and `colour`
    (strength; contrast, saturation, brightness) are for sets of few, clean pictures.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    train: bool
    resize: str = "crop"
    crop_scale: tuple[float, float] | None = None
    shift: int | None = None
    flip: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise value_error("size", got=self.size, want="at least 1 pixel", fix="use the model's image_size")
        if self.resize not in ("crop", "squash"):
            raise value_error("resize", got=repr(self.resize), want="'crop' or 'squash'", fix="choose one")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise value_error("crop_scale", got=self.crop_scale, want="0 < low <= high <= 1", fix="try (0.9, 1.0)")
        if not 0 <= self.flip <= 1:
            raise value_error("flip", got=self.flip, want="a probability, 0 to 1", fix="use 0.5 for half of them")
        if self.shift is not None and not 0 <= self.shift < self.size:
            raise value_error("shift", got=self.shift, want="0 to size - 1 pixels", fix="try size // 16")
        for name, most in (("rotate", 180), ("zoom", 1), ("colour", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise value_error(name, got=getattr(self, name), want=f"0 to {most}", fix="0 switches it off")

    @property
    def is_cacheable(self) -> bool:
        """Whether `square` gives the same for a picture in every epoch."""
        return not (self.train and self.crop_scale)

    def __call__(self, picture: Image.Image) -> Tensor:
        """One RGB picture as float32 [3, size, size], normalised, without variation: what evaluation feeds a model."""
        pixels = torch.from_numpy(np.array(self._whole(picture))).permute(2, 0, 1)[None]
        return normalise(pixels, self.mean, self.std)[0]

    def square(self, content: bytes, *, seed: int, epoch: int, index: int) -> Pixels:
        """uint8 [size, size, 3] from picture bytes; BrokenSample where they cannot be decoded."""
        if self.train and self.crop_scale is not None:
            picture = decode_image(content, enough=math.ceil(self.size / math.sqrt(self.crop_scale[0] * _RATIOS[0])))
            box = _random_box(picture.size, self.crop_scale, seed, epoch, index)
            picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        else:
            picture = self._whole(decode_image(content, enough=2 * self.size))
        return np.asarray(picture)

    def vary(self, pixels: Pixels, *, seed: int, epoch: int, ids: NDArray[np.int64]) -> Pixels:
        """Each picture of uint8 [n, size, size, 3] varied in its own way; without `train`, the same pixels."""
        if not self.train or len(ids) == 0:
            return pixels
        reach = self.shift if self.shift is not None else 0 if self.crop_scale else self.size // 16
        draws = Draws(seed, epoch, ids)
        if self.rotate or self.zoom:
            pixels, reach = warp(pixels, draws, shift=reach, rotate=self.rotate, zoom=self.zoom), 0
        if reach or self.flip:
            pixels = self._move(pixels, reach, seed, epoch, ids)
        return recolour(pixels, draws, self.colour) if self.colour else pixels

    def _move(self, pixels: Pixels, reach: int, seed: int, epoch: int, ids: NDArray[np.int64]) -> Pixels:
        """Shift by whole pixels and flip."""
        down, right = (
            np.floor(uniform(seed, epoch, use, ids) * (2 * reach + 1)).astype(np.int64).tolist()
            for use in (_SHIFT_Y, _SHIFT_X)
        )
        mirrored = (uniform(seed, epoch, _FLIP, ids) < self.flip).tolist()
        wide = np.pad(pixels, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        varied = np.empty_like(pixels)
        # slice by slice: one gather of the whole batch costs ten times as much
        for row, (top, left, mirror) in enumerate(zip(down, right, mirrored, strict=True)):
            part = wide[row, top : top + self.size, left : left + self.size]
            varied[row] = part[:, ::-1] if mirror else part
        return varied

    def _whole(self, picture: Image.Image) -> Image.Image:
        if picture.size == (self.size, self.size):
            return picture
        if self.resize == "squash":
            return picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
        width, height = picture.size
        # open_clip's convention: the shorter side becomes `size`, the longer is cut to an integer, then the centre
        short = min(width, height)
        new_width, new_height = (int(self.size * side / short) for side in (width, height))
        picture = picture.resize((new_width, new_height), Image.Resampling.BICUBIC)
        left, top = round((new_width - self.size) / 2), round((new_height - self.size) / 2)
        return picture.crop((left, top, left + self.size, top + self.size))


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixel / 255 - mean) / std of uint8 [n, 3, H, W], as float32 on the same device."""
    device = pixels.device
    std_column = torch.tensor(std, dtype=torch.float32).to(device, non_blocking=True).view(3, 1, 1)
    mean_column = torch.tensor(mean, dtype=torch.float32).to(device, non_blocking=True).view(3, 1, 1)
    return pixels.float().sub_(255 * mean_column).div_(255 * std_column)


def _random_box(
    size: tuple[int, int], scale: tuple[float, float], seed: int, epoch: int, index: int
) -> tuple[float, float, float, float]:
    """A random part of the picture: its area uniform in `scale`, its aspect log-uniform in 3/4 to 4/3 (Inception's
    crop); the whole centre square where ten tries do not fit."""
    width, height = size
    draws = {use: uniform(seed, epoch, use, index, np.arange(_CROP_TRIES)) for use in (_AREA, _RATIO, _LEFT, _TOP)}
    areas = width * height * (scale[0] + draws[_AREA] * (scale[1] - scale[0]))
    ratios = np.exp(math.log(_RATIOS[0]) + draws[_RATIO] * (math.log(_RATIOS[1]) - math.log(_RATIOS[0])))
    widths, heights = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = np.flatnonzero((widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height))
    if len(fits) == 0:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side
    first = fits[0]
    box_width, box_height = float(widths[first]), float(heights[first])
    left = math.floor(draws[_LEFT][first] * (width - box_width + 1))
    top = math.floor(draws[_TOP][first] * (height - box_height + 1))
    return left, top, left + box_width, top + box_height
