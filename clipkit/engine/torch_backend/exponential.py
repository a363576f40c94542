# SPDX-License-Identifier: Apache-2.0
"""Exponential family: log-sum-exps along rows and columns, and the products with G = e^(S - p) + e^(S - q)."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.torch_backend.tiles import Form, positives


def log_sum_exps(x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.log_sum_exps`."""
    form = Form.of(x, y, scale)
    row_lse = form.x.new_empty(x.shape[0])
    column_lse = form.x.new_full((y.shape[0],), -torch.inf)
    for rows in form.blocks():
        tile = form.logits(rows)
        if diagonal is not None:
            positives(tile, rows, diagonal).fill_(-torch.inf)
        row_lse[rows] = torch.logsumexp(tile, dim=1)
        column_lse = torch.logaddexp(column_lse, torch.logsumexp(tile, dim=0))
    return row_lse, column_lse


def exponential_products(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    *,
    row_offset: Tensor | None,
    column_offset: Tensor | None,
    diagonal: int,
    diagonal_weight: Tensor,
    want_x: bool,
    want_y: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.exponential_products`."""
    form = Form.of(x, y, scale)
    g_y = torch.empty_like(form.x) if want_x else None
    gt_x = torch.zeros_like(form.y) if want_y else None
    for rows in form.blocks():
        weights = _weights(form.logits(rows), None if row_offset is None else row_offset[rows], column_offset)
        positives(weights, rows, diagonal).copy_(diagonal_weight[rows])
        if g_y is not None:
            torch.mm(weights, form.y, out=g_y[rows])
        if gt_x is not None:
            gt_x.addmm_(weights.T, form.x[rows])
    return g_y, gt_x


def _weights(tile: Tensor, row_offset: Tensor | None, column_offset: Tensor | None) -> Tensor:
    if row_offset is None:
        assert column_offset is not None
        return tile.sub_(column_offset).exp_()
    if column_offset is None:
        return tile.sub_(row_offset[:, None]).exp_()
    columns = (tile - column_offset).exp_()
    return tile.sub_(row_offset[:, None]).exp_().add_(columns)
