# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.patches` by csrc/cuda/patches.h."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.cuda_backend.library import check_tensor, native, stream_for


def sample_patches(samples: Tensor, *, patches: int, keep: int, seed: int, step: int) -> Tensor:
    """See `clipkit.engine.patches.sample_patches`."""
    check_tensor("samples", samples, samples, dtype=torch.int64)
    chosen = samples.new_empty(len(samples), keep)
    with stream_for(samples) as stream:
        native().sample_patches(seed, step, samples.data_ptr(), len(samples), patches, keep, chosen.data_ptr(), stream)
    return chosen


def gather_patches(pixels: Tensor, chosen: Tensor, *, size: int) -> Tensor:
    """See `clipkit.engine.patches.gather_patches`. A number outside the grid gives zeros; plain torch refuses it."""
    check_tensor("pixels", pixels, pixels, dtype=pixels.dtype)
    check_tensor("chosen", chosen, pixels, dtype=torch.int64, shape=(pixels.shape[0], None))
    (count, channels, side, _), keep = pixels.shape, chosen.shape[1]
    out = pixels.new_empty(count, keep, channels * size * size)
    addresses = (pixels.data_ptr(), chosen.data_ptr())
    with stream_for(pixels) as stream:
        native().gather_patches(
            pixels.element_size(), *addresses, count, keep, channels, side // size, size, out.data_ptr(), stream
        )
    return out
