# SPDX-License-Identifier: Apache-2.0
"""Exponential family: log-sum-exps along rows and columns, and the products with G = e^(S - p) + e^(S - q)."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.torch_backend.tiles import Form, positives
from clipkit.engine.workspace import Workspace


def log_sum_exps(
    x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None, workspace: Workspace | None = None
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.log_sum_exps`."""
    form = Form.of(x, y, scale)
    row_lse = form.x.new_empty(x.shape[0])
    column_lse = form.x.new_full((y.shape[0],), -torch.inf)
    kept = None if workspace is None else workspace.keep(len(x), len(y), x)
    for rows in form.blocks():
        if kept is None:
            tile = form.logits(rows)
        else:
            tile = form.products(rows, out=kept.view(len(x), len(y))[rows]) * form.scale
        if diagonal is not None:
            positives(tile, rows, diagonal).fill_(-torch.inf)
        row_lse[rows] = torch.logsumexp(tile, dim=1)
        column_lse = torch.logaddexp(column_lse, torch.logsumexp(tile, dim=0))
    return row_lse, column_lse


def anchor_statistics(x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.anchor_statistics`."""
    form = Form.of(x, y, scale)
    factor = form.scale.expand(x.shape[0])[:, None]
    lse, mean = form.x.new_empty(x.shape[0]), form.x.new_empty(x.shape[0])
    for rows in form.blocks():
        tile = form.products(rows)
        logits = tile * factor[rows]
        if diagonal is not None:
            positives(logits, rows, diagonal).fill_(-torch.inf)
            positives(tile, rows, diagonal).zero_()  # a NaN there is left out too
        lse[rows] = torch.logsumexp(logits, dim=1)
        weights = logits.softmax(dim=1)  # exact sums of one: e^(s - lse) carries the rounding of the log-sum-exp
        mean[rows] = torch.linalg.vecdot(weights, tile).masked_fill_(lse[rows].isneginf(), 0.0)
    return lse, mean


def exponential_products(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    *,
    row_offset: Tensor | None,
    column_offset: Tensor | None,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    diagonal: int,
    diagonal_weight: Tensor,
    want_x: bool,
    want_y: bool,
    workspace: Workspace | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.exponential_products`."""
    form = Form.of(x, y, scale)
    row_factor = (form.scale if row_scale is None else form.scale * row_scale).expand(x.shape[0])
    column_factor = form.scale if column_scale is None else form.scale * column_scale
    g_y = torch.empty_like(form.x) if want_x else None
    gt_x = torch.zeros_like(form.y) if want_y else None
    kept = None if workspace is None else workspace.take()
    for rows in form.blocks():
        tile = form.products(rows) if kept is None else kept.view(len(x), len(y))[rows]
        down = None if column_offset is None else (tile * column_factor).sub_(column_offset).exp_()
        weights = down
        if row_offset is not None:
            weights = tile.mul_(row_factor[rows, None]).sub_(row_offset[rows, None]).exp_()
            if down is not None:
                weights.add_(down)
        assert weights is not None, "offsets of at least one direction"
        positives(weights, rows, diagonal).copy_(diagonal_weight[rows])
        if g_y is not None:
            torch.mm(weights, form.y, out=g_y[rows])
        if gt_x is not None:
            gt_x.addmm_(weights.T, form.x[rows])
    return g_y, gt_x
