# SPDX-License-Identifier: Apache-2.0
"""What masked image modelling hides of each picture: whole blocks of patches (Bao et al. 2021, "BEiT", algorithm 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_SMALLEST = 16 / 14**2
"""The smallest block as a share of the picture: BEiT's 16 of 14 x 14 patches."""
_FLATTEST = 0.3
"""Least ratio of a block's sides, either way."""
_BLOCKS = 16
"""Blocks drawn for each picture. Of 20,000 pictures of 14 x 14 patches one has not 40 % hidden by the first 8, none by
the first 12; whatever 16 leave open is taken from the rest in order."""


def hidden_patches(patches: int, share: float) -> int:
    """How many of a picture's patches are hidden: the nearest whole number, at least one, and not all."""
    return min(max(1, round(patches * share)), patches - 1)


def block_masks(samples: Tensor, *, grid: int, count: int, seed: int, step: int) -> Tensor:
    """`count` patch numbers for each sample, int64 [n, count], that blocks cover one after the other.

    A block's area is uniform between 8 % of the picture and `count`, the logarithm of its sides' ratio uniform between
    0.3 and 1 / 0.3, its place uniform. BEiT draws on until nothing fits any more and so hides up to `count` patches;
    here the last block is cut, row by row, so that all pictures hide equally many: no shape depends on what was drawn,
    and the device is never asked. A function of (seed, step, sample), the same for any number of ranks.

    samples: int64 [n], the pictures' ids in the data set. grid: patches along a side. count: 1 to grid * grid.
    seed: in [0, 2^64). step: in [0, 2^32).
    """
    device, patches = samples.device, grid * grid
    blocks = torch.arange(_BLOCKS, device=device)
    ids = samples.unsqueeze(1)
    counter = (blocks, torch.full_like(blocks, step), ids & _WORD, ids >> 32 & _WORD)
    words = philox(counter, seed)  # [n, B] each
    area, ratio, row, column = (word.double() / 2**32 for word in words)
    smallest = min(count, max(1, round(_SMALLEST * patches)))
    area = smallest + area * (count - smallest)
    ratio = torch.exp((2 * ratio - 1) * math.log(_FLATTEST))
    height, width = ((area * r).sqrt().round().long().clamp(1, grid) for r in (ratio, 1 / ratio))
    top, left = ((u * (grid - side + 1)).long() for u, side in ((row, height), (column, width)))
    places = torch.arange(grid, device=device)
    rows, columns = (
        (places >= start.unsqueeze(-1)) & (places < (start + side).unsqueeze(-1))
        for start, side in ((top, height), (left, width))
    )
    covered = (rows.unsqueeze(-1) & columns.unsqueeze(-2)).flatten(2)  # [n, B, patches]
    number = blocks.byte().unsqueeze(-1)
    order = number.where(covered, _BLOCKS).amin(dim=1).long()  # of the first block over each patch
    place = torch.arange(patches, device=device)
    place = place.where(words[0][:, :1] % 2 == 0, place.flip(0))  # the last block is cut from above or from below
    return (order * patches + place).argsort(dim=1)[:, :count]


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10 (Salmon et al. 2011): four random words from four words, broadcastable int64 tensors in [0, 2^32).

    key: in [0, 2^64).
    """
    first, second, third, fourth = counter
    low, high = key & _WORD, key >> 32
    for _ in range(10):
        # 32 by 32 bits wraps around in int64, which leaves the right 64 bits
        even, odd = first * 0xD2511F53, third * 0xCD9E8D57
        first, second = (odd >> 32 & _WORD) ^ second ^ low, odd & _WORD
        third, fourth = (even >> 32 & _WORD) ^ fourth ^ high, even & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return first, second, third, fourth


def replace_patches(embedded: Tensor, positions: Tensor, hidden: Tensor, token: Tensor) -> Tensor:
    """Embedded patches [n, patches, width] with `token` [width] in the place of the hidden ones.

    positions: [patches, width], which `embedded` has added already and the token gets too. hidden: int64 [n, count].
    """
    blank = (token + positions)[hidden].to(embedded.dtype)
    return embedded.scatter(1, hidden.unsqueeze(-1).expand_as(blank), blank)
