# SPDX-License-Identifier: Apache-2.0
"""Functions of large tensors, a piece at a time: each passes through temporaries of the accumulation type."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_CPU_ELEMENTS, _ELEMENTS = 1 << 18, 1 << 24
"""Of a piece. fp32 temporaries are then 1 MiB on a CPU, which stay in its second-level cache, and 64 MiB on a card, on
which a kernel over as much takes longer than its launch.
"""


def in_pieces(function: Callable[..., tuple[Tensor, ...]], *operands: Tensor | None) -> tuple[Tensor, ...]:
    """function(*operands), where all operands that are there share a first dimension, which every result keeps."""
    largest = max((operand for operand in operands if operand is not None), key=torch.numel)
    most = _CPU_ELEMENTS if largest.device.type == "cpu" else _ELEMENTS
    step = max(1, most // max(1, largest[:1].numel()))
    if len(largest) <= step:
        return function(*operands)
    pieces = [
        function(*(None if operand is None else operand[start : start + step] for operand in operands))
        for start in range(0, len(largest), step)
    ]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))
