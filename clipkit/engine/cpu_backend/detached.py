# SPDX-License-Identifier: Apache-2.0
"""One-directional softmax, loss and gradients in one go.

Detached keys (no Gᵀ X wanted) take one sweep of two products: G Y is summed with exponentials relative to a running
offset of each row, and divided by the row's sum at the end. Gᵀ X cannot be had before the rows' sums are known, so with
it a slab of S is kept between a sweep that sums and one that multiplies: three products, not four.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.engine.cpu_backend.compiled import compiled
from clipkit.engine.cpu_backend.passes import RunningSums, at, fp32_zeros, tile_of
from clipkit.engine.cpu_backend.products import Bf16Products, products_of
from clipkit.engine.cpu_backend.tiles import LINES, over_tiles, tile_in, whole
from clipkit.engine.precision import softplus, widen

_SLAB_BYTES = 32 << 20
"""1024 rows at 8192 keys. Memory's bandwidth is what it costs: a product of its own would cost more at any width."""


def softmax_sweep(
    x: Tensor, y: Tensor, scale: Tensor, labels: Tensor, *, want_x: bool, want_y: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.softmax_sweep`."""
    labels = labels.to(torch.int64).contiguous()
    if not want_y:
        loss, g_y = _detached(x, y, float(scale), labels, want_x)
        return loss, g_y, None
    return _attached(x, y, float(scale), labels, want_x)


def _detached(x: Tensor, y: Tensor, factor: float, labels: Tensor, want_x: bool) -> tuple[Tensor, Tensor | None]:
    products = products_of(x, y)
    sums, positive = RunningSums.empty(len(x), x), x.new_zeros(len(x), dtype=torch.float32)
    g_y, shrink = fp32_zeros(want_x, x), torch.ones_like(positive)

    def work(rows: slice, columns: slice, tile: Tensor) -> None:
        products.tile(rows, columns, tile)
        lines = (tile_of(tile, factor), *at(rows, labels), columns.start, *at(rows, positive, *sums))
        if g_y is None:
            compiled().tile_statistics(*lines, 0, 0)
            return
        compiled().tile_online_softmax(*lines, *at(rows, shrink))
        if not bool((shrink[rows] == 1.0).all()):
            g_y[rows].mul_(shrink[rows, None])
        products.add_to_rows(tile, rows, columns, g_y)

    over_tiles(whole(x, y), work, like=x)
    margins = _Margins.of(sums, positive)
    if g_y is not None:
        g_y.mul_((sums.offset - margins.lse).exp_()[:, None])
        g_y.addcmul_(margins.label_weight[:, None], widen(y[labels]))
    return margins.loss.float(), g_y


def _attached(
    x: Tensor, y: Tensor, factor: float, labels: Tensor, want_x: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    sweep = _Slabs(x, y, factor, labels, want_x)
    for start in range(0, len(x), sweep.height):
        slab = slice(start, min(start + sweep.height, len(x)))
        over_tiles((slab, slice(0, len(y))), sweep.sum_up, like=x, buffers=0)
        sweep.normalise(slab)
        over_tiles((slab, slice(0, len(y))), sweep.multiply, like=x, buffers=0)
    sweep.finish()
    return sweep.loss.float(), sweep.g_y, sweep.gt_x


class _Slabs:
    """A slab of S at a time, tile by tile in one buffer, and the sums over all slabs."""

    def __init__(self, x: Tensor, y: Tensor, factor: float, labels: Tensor, want_x: bool) -> None:
        self.height = min(max(_SLAB_BYTES // (4 * max(1, len(y))) // LINES, 1) * LINES, max(1, len(x)))
        self.loss = x.new_zeros((), dtype=torch.float64)
        self.g_y, self.gt_x = fp32_zeros(want_x, x), fp32_zeros(True, y)
        self._products, self._factor, self._labels = products_of(x, y), factor, labels
        self._rounding = self._products if isinstance(self._products, Bf16Products) else None
        self._kept = x.new_empty(self.height * len(y), dtype=torch.float32)
        self._width = len(y)
        self._sums, self._positive = RunningSums.empty(len(x), x), x.new_zeros(len(x), dtype=torch.float32)
        self._lse, self._weight = torch.empty_like(self._positive), torch.empty_like(self._positive)
        self._weight_in_tiles = torch.zeros_like(self._weight) if self._rounding else self._weight

    def sum_up(self, rows: slice, columns: slice) -> None:
        """Make a tile and add it to its rows' sums, labels left out."""
        tile = self._tile(rows, columns)
        self._products.tile(rows, columns, tile)
        lines = (*at(rows, self._labels), columns.start, *at(rows, self._positive, *self._sums))
        compiled().tile_statistics(tile_of(tile, self._factor), *lines, 0, 0)

    def normalise(self, slab: slice) -> None:
        """The loss of the slab's rows, and what its weights need."""
        margins = _Margins.of(RunningSums(*(part[slab] for part in self._sums)), self._positive[slab])
        self.loss += margins.loss
        self._lse[slab], self._weight[slab] = margins.lse, margins.label_weight

    def multiply(self, rows: slice, columns: slice) -> None:
        """Turn a kept tile into weights and add its products."""
        tile = self._tile(rows, columns)
        labels = (*at(rows, self._labels), columns.start, *at(rows, self._weight_in_tiles))
        compiled().tile_gradient(tile_of(tile, self._factor), *labels, *at(rows, self._lse), 0, 0, 0)
        if self.g_y is not None:
            self._products.add_to_rows(tile, rows, columns, self.g_y)
        assert self.gt_x is not None
        self._products.add_to_columns(tile, rows, columns, self.gt_x)

    def finish(self) -> None:
        """Add the labels' own parts where tiles left them out: half of all weight, which rounding would move by as much
        as all the rest together.
        """
        if self._rounding:
            self._rounding.add_positives(self._labels, self._weight, self.g_y, self.gt_x)

    def _tile(self, rows: slice, columns: slice) -> Tensor:
        slab = rows.start - rows.start % self.height
        return tile_in(self._kept, slice(rows.start - slab, rows.stop - slab), columns, self._width)


class _Margins(NamedTuple):
    """Of each row, with its label's logit: the log-sum-exp over all columns, and G at the label. And the loss.

    With δ the log-sum-exp over the others minus the label's logit, the loss is softplus(δ), exact when tiny.
    """

    loss: Tensor
    lse: Tensor
    label_weight: Tensor

    @classmethod
    def of(cls, others: RunningSums, positive: Tensor) -> _Margins:
        negatives = others.log()
        margin = negatives - positive
        loss = softplus(margin).sum(dtype=torch.float64)
        return cls(loss, torch.logaddexp(negatives, positive), -torch.sigmoid(margin))
