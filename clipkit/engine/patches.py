# SPDX-License-Identifier: Apache-2.0
"""Patch dropout: which patches of each picture stay, as a function of (seed, step, sample), and the pixels of those.

The same patches are kept on every device, by every backend and with any number of ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.dispatch import choose
from clipkit.errors import type_error, value_error

MOST_PATCHES = 4096


def kept_patches(patches: int, dropout: float) -> int:
    """How many of a picture's patches stay: max(1, int(patches * (1 - dropout)))."""
    return max(1, int(patches * (1 - dropout)))


def sample_patches(samples: Tensor, *, patches: int, keep: int, seed: int, step: int, backend: str = "") -> Tensor:
    """`keep` patch numbers for each sample, ascending, int64 [n, keep]: uniform without replacement, and independent
    between samples and steps.

    Args:
        samples: int64 [n], the pictures' ids in the data set (not their places in the batch).
        patches: patches of a picture, at most 4096.
        keep: 1 to `patches`.
        seed: in [0, 2^64).
        step: in [0, 2^32).
        backend: the engine's backend by name; None for the device's default.

    Raises:
        TypeError, ValueError: one of these is not so.
    """
    if samples.dtype != torch.int64 or samples.ndim != 1:
        got = f"{samples.dtype} of shape {tuple(samples.shape)}"
        raise type_error("samples", got=got, want="sample ids, int64 [n]", fix="pass the ids of the batch")
    for name, number, least, most in (
        ("patches", patches, 1, MOST_PATCHES),
        ("keep", keep, 1, patches),
        ("seed", seed, 0, 2**64 - 1),
        ("step", step, 0, 2**32 - 1),
    ):
        if not least <= number <= most:
            raise value_error(name, got=number, want=f"a number from {least} to {most}", fix="check the configuration")
    return choose("sample_patches", samples, backend)(samples, patches=patches, keep=keep, seed=seed, step=step)


def gather_patches(pixels: Tensor, chosen: Tensor, *, size: int, backend: str = "") -> Tensor:
    """The pixels of chosen patches: [n, keep, channels * size * size] by channel, row, column.

    Args:
        pixels: [n, channels, grid * size, grid * size], contiguous, of any 1-, 2- or 4-byte type.
        chosen: int64 [n, keep], patch numbers row by row.
        size: side of a patch.
        backend: the engine's backend by name; None for the device's default.

    Raises:
        ValueError: the shapes do not belong together.
    """
    square = pixels.ndim == 4 and pixels.shape[2] == pixels.shape[3]
    if not square or size < 1 or pixels.shape[2] % size:
        got = f"shape {tuple(pixels.shape)}"
        raise value_error("pixels", got=got, want=f"[n, channels, a multiple of {size}, the same]", fix="resize them")
    if chosen.ndim != 2 or chosen.shape[0] != pixels.shape[0]:
        got = f"shape {tuple(chosen.shape)}"
        raise value_error("chosen", got=got, want=f"[{pixels.shape[0]}, keep]", fix="sample for this batch")
    return choose("gather_patches", pixels, backend)(pixels, chosen, size=size)
