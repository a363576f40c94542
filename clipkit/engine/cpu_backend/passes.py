# SPDX-License-Identifier: Apache-2.0
"""What the compiled passes are given: tiles, addresses of lines, running sums."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipkit.engine.cpu_backend.compiled import compiled


def tile_of(products: Tensor, scale: float) -> Any:
    """A contiguous tile for a compiled pass."""
    return compiled().Tile(products.data_ptr(), products.stride(0), *products.shape, scale)


def at(lines: slice, *vectors: Tensor | None) -> list[int]:
    """Where the lines' numbers begin in each vector; 0, which leaves it out, for None."""
    return [0 if vector is None else vector.data_ptr() + lines.start * vector.element_size() for vector in vectors]


class RunningSums(NamedTuple):
    """Log-sum-exps in the making, offset + log(total) for each line; updated in place by the passes."""

    offset: Tensor
    total: Tensor

    @classmethod
    def empty(cls, lines: int, like: Tensor) -> RunningSums:
        """Nothing summed yet."""
        offset = like.new_full((lines,), -torch.inf, dtype=torch.float32)
        return cls(offset, torch.zeros_like(offset))

    def log(self) -> Tensor:
        """The log-sum-exps, -inf where nothing was summed."""
        return self.total.log().add_(self.offset)


def diagonal_columns(rows: int, diagonal: int, like: Tensor) -> Tensor:
    """Column of each row's positive, [rows] int64."""
    return torch.arange(diagonal, diagonal + rows, device=like.device)


def fp32_zeros(wanted: bool, like: Tensor) -> Tensor | None:
    """Where products are summed, or None if nobody wants them."""
    return like.new_zeros(like.shape, dtype=torch.float32) if wanted else None
