# SPDX-License-Identifier: Apache-2.0
"""One rank's rows of a global batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clipkit.data.transform import normalise


@dataclass(frozen=True)
class Skipped:
    """A sample that should have been in the batch and could not be used."""

    index: int
    reason: str
    where: str


@dataclass(frozen=True)
class Batch:
    """`ids` int64 [n]; `tokens` int64 [n, context]; `captions` of length n; `pixels` uint8 [n, 3, H, W] until
    `to(device)`, which makes them normalised float32; `step` is the global step they belong to. n may be 0 (every
    sample of this rank's slice was broken) and differs between ranks."""

    ids: Tensor
    pixels: Tensor
    tokens: Tensor
    captions: list[str]
    step: int
    mean: Sequence[float]
    std: Sequence[float]
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device` with pixels float32, (pixel / 255 - mean) / std; bytes travel, not floats."""
        pixels = self.pixels.to(device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = normalise(pixels, self.mean, self.std)
        return replace(
            self,
            ids=self.ids.to(device, non_blocking=True),
            pixels=pixels,
            tokens=self.tokens.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, so that `to` of a CUDA device does not wait."""
        return replace(
            self, ids=self.ids.pin_memory(), pixels=self.pixels.pin_memory(), tokens=self.tokens.pin_memory()
        )
