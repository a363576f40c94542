# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.patches` in plain torch: the same random numbers and the same patches as the compiled kernel's."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def sample_patches(samples: Tensor, *, patches: int, keep: int, seed: int, step: int) -> Tensor:
    """See `clipkit.engine.patches.sample_patches`."""
    patch = torch.arange(patches, device=samples.device)
    ids = samples.unsqueeze(1)
    first, second, _, _ = philox((patch, torch.full_like(patch, step), ids & _WORD, ids >> 32 & _WORD), seed)
    # 64 unsigned bits in an int64: with the top bit turned over, signed order is unsigned order
    draws = (second ^ 0x80000000) << 32 | first
    return draws.argsort(dim=1, stable=True)[:, :keep].sort(dim=1).values


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10 (Salmon et al. 2011): four words from four words of broadcastable int64 tensors in [0, 2^32)."""
    first, second, third, fourth = counter
    low, high = key & _WORD, key >> 32
    for _ in range(10):
        # 32 by 32 bits wraps around in int64, which leaves the right 64 bits
        even, odd = first * 0xD2511F53, third * 0xCD9E8D57
        first, second = (odd >> 32 & _WORD) ^ second ^ low, odd & _WORD
        third, fourth = (even >> 32 & _WORD) ^ fourth ^ high, even & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return first, second, third, fourth


def gather_patches(pixels: Tensor, chosen: Tensor, *, size: int) -> Tensor:
    """See `clipkit.engine.patches.gather_patches`."""
    count, channels, side, _ = pixels.shape
    grid = side // size
    # [n, row, column, channel, size, size], a view
    patches = pixels.reshape(count, channels, grid, size, grid, size).permute(0, 2, 4, 1, 3, 5)
    picture = torch.arange(count, device=pixels.device).unsqueeze(1)
    return patches[picture, chosen // grid, chosen % grid].flatten(2)
