# SPDX-License-Identifier: Apache-2.0
"""Pictures and captions of the size and the lengths that training has; what they show does not matter to a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MEDIAN_LENGTH = 13.0
LENGTH_SPREAD = 0.53
"""Caption lengths are log-normal, in tokens with start and end: mean 14.9, one in a hundred beyond 44 of 77."""
SHORTEST = 4


@dataclass(frozen=True)
class Batch:
    """pixels: normalised [n, 3, size, size]. tokens: int64 [n, context], start, words, end, zeros, on the host too,
    where our trainer packs them."""

    pixels: Tensor
    tokens: Tensor
    host_tokens: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


def lengths(count: int, context: int, generator: torch.Generator) -> Tensor:
    """`count` caption lengths, int64: the quantiles of the distribution in random order.

    Quantiles, so that batches of one size are equally long and a few of them are enough to time.
    """
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    normal = math.sqrt(2) * torch.erfinv(2 * quantiles - 1)
    exact = MEDIAN_LENGTH * (LENGTH_SPREAD * normal).exp()
    return exact.round().long().clamp(SHORTEST, context)[torch.randperm(count, generator=generator)]


def make_batch(
    count: int, *, image_size: int, context: int, vocab_size: int, seed: int, device: str, dtype: torch.dtype
) -> Batch:
    """The batch of that seed, the same numbers on every device and (rounded) in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, image_size, image_size, generator=generator)
    tokens = torch.randint(1, vocab_size - 2, (count, context), generator=generator)
    last = lengths(count, context, generator).unsqueeze(1) - 1
    places = torch.arange(context)
    tokens[:, 0] = vocab_size - 2
    tokens[places.expand(count, -1) == last] = vocab_size - 1
    tokens[places > last] = 0
    return Batch(pixels.to(device, dtype), tokens.to(device), tokens)
