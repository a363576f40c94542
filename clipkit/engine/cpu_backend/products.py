# SPDX-License-Identifier: Apache-2.0
"""The three matrix products of a sweep, one tile at a time, accumulated in fp32 and never rounded to 16 bit.

A method may be called from several threads at once, for tiles that share neither rows nor columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clipkit.engine.precision import widen


class Products(Protocol):
    """Products with two towers x [n, d] and y [m, d]; `rows` and `columns` cut out a tile of x yᵀ."""

    def tile(self, rows: slice, columns: slice, out: Tensor) -> None:
        """`out` = x[rows] y[columns]ᵀ, contiguous fp32, not yet scaled."""

    def add_to_rows(self, weights: Tensor, rows: slice, columns: slice, out: Tensor) -> None:
        """`out`[rows] += weights y[columns], for fp32 weights of the tile and out [n, d] in fp32."""

    def add_to_columns(self, weights: Tensor, rows: slice, columns: slice, out: Tensor) -> None:
        """`out`[columns] += weightsᵀ x[rows], out [m, d] in fp32."""


@dataclass(frozen=True)
class Fp32Products:
    """By torch's BLAS in fp32. 16-bit towers were widened, which is exact."""

    x: Tensor
    y: Tensor

    def tile(self, rows: slice, columns: slice, out: Tensor) -> None:
        """See `Products`."""
        torch.mm(self.x[rows], self.y[columns].T, out=out)

    def add_to_rows(self, weights: Tensor, rows: slice, columns: slice, out: Tensor) -> None:
        """See `Products`."""
        out[rows].addmm_(weights, self.y[columns])

    def add_to_columns(self, weights: Tensor, rows: slice, columns: slice, out: Tensor) -> None:
        """See `Products`."""
        out[columns].addmm_(weights.T, self.x[rows])


def products_of(x: Tensor, y: Tensor) -> Products:
    """The fastest products for towers of this type on this machine."""
    return Fp32Products(widen(x), widen(y))
