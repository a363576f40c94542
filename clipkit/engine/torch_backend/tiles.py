# SPDX-License-Identifier: Apache-2.0
"""Tiles of a pairwise form: a few full rows of S at a time, in a bounded workspace, with fp32 accumulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.engine.precision import accumulation, widen

_WORKSPACE_BYTES = {"cuda": 256 << 20}
_DEFAULT_WORKSPACE_BYTES = 4 << 20
_FEWEST_ROWS = 64
"""Below this a product of [rows, d] with [d, m] is bound by reading Y; 64 fp32 rows cost 256·m bytes, under one [m, d]
tower.
"""


def row_blocks(rows: int, columns: int, like: Tensor) -> Iterator[slice]:
    """Consecutive blocks of rows whose [block, columns] tile fits the workspace."""
    itemsize = accumulation(like).itemsize
    budget = _WORKSPACE_BYTES.get(like.device.type, _DEFAULT_WORKSPACE_BYTES)
    height = max(_FEWEST_ROWS, budget // max(1, columns * itemsize))
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


@dataclass(frozen=True)
class Form:
    """One pairwise form S = scale · X Yᵀ, asked for a block of rows at a time."""

    x: Tensor
    y: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, scale: Tensor) -> Form:
        """Both towers widened once; O((n + m)·d) memory, and nothing at all for fp32 and float64 inputs."""
        return cls(widen(x), widen(y), scale.to(accumulation(x)))

    def products(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """The tile <x_i, y_j> of `rows`, not yet scaled."""
        return torch.mm(self.x[rows], self.y.T, out=out)

    def logits(self, rows: slice) -> Tensor:
        """The tile S[rows, :]; the scale multiplies the fp32 product, never an operand."""
        return self.products(rows).mul_(self.scale)

    def blocks(self) -> Iterator[slice]:
        """The blocks of rows that cover the form."""
        return row_blocks(self.x.shape[0], self.y.shape[0], self.x)


def positives(tile: Tensor, rows: slice, diagonal: int) -> Tensor:
    """A writable view of the positives' entries in the tile of `rows`, where row i's positive is column diagonal +
    i.
    """
    return tile.diagonal(diagonal + rows.start)
