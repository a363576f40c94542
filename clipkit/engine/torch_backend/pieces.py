# SPDX-License-Identifier: Apache-2.0
"""Large tensors a piece at a time, where each piece passes through temporaries of the accumulation type."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

_CPU_ELEMENTS, _ELEMENTS = 1 << 18, 1 << 24
"""Of a piece. fp32 temporaries are then 1 MiB on a CPU, which stay in its second-level cache, and 64 MiB on a card, on
which a kernel over as much takes longer than its launch.
"""


def pieces(like: Tensor) -> Iterator[slice]:
    """Slices of the first dimension, in order."""
    most = _CPU_ELEMENTS if like.device.type == "cpu" else _ELEMENTS
    step = max(1, most // max(1, like[:1].numel()))
    for start in range(0, len(like), step):
        yield slice(start, min(start + step, len(like)))
