# SPDX-License-Identifier: Apache-2.0
"""The numbers the library computes in: what may come in, what it is accumulated in, and a softplus that keeps its
digits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The types that features may have: float64 accumulates in float64, the others exactly in float32."""

_CHUNK_ELEMENTS = 24 << 10
"""Below 32768, from which torch shares an operation among threads and waits for the last of them: 12 ms for the
positives of 4096 x 512 features, where chunks of 65536 took 40 to 2400 on a busy machine.
"""


def accumulation(like: Tensor) -> torch.dtype:
    """The type of products, statistics, losses and saved gradients: float64 for float64, else float32."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def widen(features: Tensor) -> Tensor:
    """Features in the accumulation type. A product of widened 16-bit numbers is exact, so nothing is rounded but the
    sum.
    """
    return features.to(accumulation(features))


def row_chunks(like: Tensor) -> Iterator[slice]:
    """Rows of [n, d] features, some at a time on the CPU, all at once elsewhere.

    What widens 16-bit features and reduces them does so through temporaries of the accumulation type, two or three
    towers large; on a CPU each is new memory, paged in for one use.
    """
    rows, width = like.shape
    step = max(1, _CHUNK_ELEMENTS // max(1, width)) if like.device.type == "cpu" else max(1, rows)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) in float32 or float64.

    torch's default returns x itself from 20 on, which is wrong by 2e-9 there; e^-40 is below either type's rounding.
    """
    return F.softplus(x, threshold=40.0)
