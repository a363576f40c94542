# SPDX-License-Identifier: Apache-2.0
"""Second order: the gradient of a gradient match is a Hessian-vector product of the CLIP loss, in two sweeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.engine.cpu_backend.compiled import compiled
from clipkit.engine.cpu_backend.passes import at, diagonal_columns, fp32_zeros, tile_of
from clipkit.engine.cpu_backend.products import Products, products_of
from clipkit.engine.cpu_backend.tiles import over_tiles, whole
from clipkit.engine.precision import widen
from clipkit.engine.sweeps import Direction, Softmaxes
from clipkit.engine.torch_backend.tiles import positives


def curvature_sums(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    along_rows: Direction,
    along_columns: Direction,
    *,
    row_lse: Tensor,
    column_lse: Tensor,
    diagonal: int,
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.curvature_sums`."""
    form = _Form.of(x, y, scale, along_rows, along_columns, row_lse, column_lse)
    row_sum, column_sum = (torch.zeros_like(lse, dtype=torch.float64) for lse in (row_lse, column_lse))

    def work(rows: slice, columns: slice, *tiles: Tensor) -> None:
        arguments = form.tiles(rows, columns, *tiles)
        for moved in tiles[1:-1]:
            positives(moved, rows, diagonal - columns.start).zero_()
        compiled().tile_curvature_sums(*arguments, *at(rows, row_sum), *at(columns, column_sum))

    over_tiles(whole(x, y), work, like=x, buffers=form.buffers)
    return row_sum.float(), column_sum.float()


def curvature_products(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    along_rows: Direction,
    along_columns: Direction,
    softmaxes: Softmaxes,
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.curvature_products`."""
    *vectors, diagonal = softmaxes
    row_lse, column_lse, row_mean, column_mean, row_miss, column_miss, positive_weight = (
        vector.contiguous() for vector in vectors
    )
    form = _Form.of(x, y, scale, along_rows, along_columns, row_lse, column_lse)
    positive = diagonal_columns(len(x), diagonal, x)
    out_x, out_y = fp32_zeros(True, x), fp32_zeros(True, y)
    assert out_x is not None
    assert out_y is not None

    def work(rows: slice, columns: slice, *tiles: Tensor) -> None:
        arguments = form.tiles(rows, columns, *tiles)
        means = (*at(rows, row_mean), *at(columns, column_mean))
        own = (*at(rows, positive), columns.start, *at(rows, row_miss, column_miss, positive_weight))
        compiled().tile_curvature_weights(*arguments, *means, *own)
        form.products.add_to_rows(tiles[1], rows, columns, out_x)
        form.products.add_to_columns(tiles[1], rows, columns, out_y)
        for move, weights in zip(form.moves, (tiles[0], tiles[2]), strict=False):
            move.with_y.add_to_rows(weights, rows, columns, out_x)
            move.with_x.add_to_columns(weights, rows, columns, out_y)

    over_tiles(whole(x, y), work, like=x, buffers=form.buffers)
    return out_x, out_y


@dataclass(frozen=True)
class _Move:
    """The form's derivative along a direction, over the scale: direction.x Yᵀ + X direction.yᵀ."""

    with_x: Products
    with_y: Products

    @classmethod
    def along(cls, direction: Direction, x: Tensor, y: Tensor) -> _Move:
        return cls(products_of(direction.x, y), products_of(x, direction.y))

    def tile(self, rows: slice, columns: slice, out: Tensor, spare: Tensor) -> None:
        self.with_x.tile(rows, columns, out)
        self.with_y.tile(rows, columns, spare)
        out.add_(spare)


@dataclass(frozen=True)
class _Form:
    """S and how it moves along one direction, or along two."""

    products: Products
    moves: list[_Move]
    factor: float
    row_lse: Tensor
    column_lse: Tensor

    @classmethod
    def of(
        cls,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        along_rows: Direction,
        along_columns: Direction,
        row_lse: Tensor,
        column_lse: Tensor,
    ) -> _Form:
        wide_x, wide_y = widen(x), widen(y)
        directions = (along_rows,) if along_rows is along_columns else (along_rows, along_columns)
        moves = [_Move.along(direction, wide_x, wide_y) for direction in directions]
        return cls(products_of(x, y), moves, float(scale), row_lse.contiguous(), column_lse.contiguous())

    @property
    def buffers(self) -> int:
        """S, the moves, and a spare one that adds up a move's two parts."""
        return 2 + len(self.moves)

    def tiles(self, rows: slice, columns: slice, *tiles: Tensor) -> tuple[object, ...]:
        """Makes the tiles of S and of the moves; the arguments that every pass of this family begins with."""
        logits, *moved, spare = tiles
        for move, out in zip(self.moves, moved, strict=True):
            move.tile(rows, columns, out, spare)
        self.products.tile(rows, columns, logits)
        lses = (*at(rows, self.row_lse), *at(columns, self.column_lse))
        return tile_of(logits, self.factor), moved[0].data_ptr(), moved[-1].data_ptr(), *lses
