# SPDX-License-Identifier: Apache-2.0
"""Second order: the gradient of a gradient match is a Hessian-vector product of the CLIP loss, in two sweeps."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.sweeps import Direction, Softmaxes
from clipkit.engine.torch_backend.tiles import Form, positives


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
    form = Form.of(x, y, scale)
    row_sum = torch.empty_like(row_lse)
    column_sum = torch.zeros_like(column_lse)
    for rows in form.blocks():
        tile = form.logits(rows)
        r_rows, r_columns = _moves(form, rows, along_rows, along_columns)
        for moved in (r_rows, r_columns):
            positives(moved, rows, diagonal).zero_()
        row_sum[rows] = torch.linalg.vecdot((tile - row_lse[rows, None]).exp_(), r_rows, dim=1)
        column_sum += torch.linalg.vecdot(tile.sub_(column_lse).exp_(), r_columns, dim=0)
    return row_sum, column_sum


def curvature_products(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    along_rows: Direction,
    along_columns: Direction,
    softmaxes: Softmaxes,
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.curvature_products`."""
    form = Form.of(x, y, scale)
    row_lse, column_lse, row_mean, column_mean, row_miss, column_miss, positive_weight, diagonal = softmaxes
    out_x = torch.empty_like(form.x)
    out_y = torch.zeros_like(form.y)
    for rows in form.blocks():
        tile = form.logits(rows)
        r_rows, r_columns = _moves(form, rows, along_rows, along_columns)
        p = (tile - row_lse[rows, None]).exp_()
        q = tile.sub_(column_lse).exp_()
        m = p * (r_rows - row_mean[rows, None]) + q * (r_columns - column_mean)
        positives(m, rows, diagonal).copy_(positive_weight[rows])
        # From here on P - I and Q - I.
        positives(p, rows, diagonal).copy_(-row_miss[rows])
        positives(q, rows, diagonal).copy_(-column_miss[rows])
        out_x[rows] = m @ form.y + p @ along_rows.y + q @ along_columns.y
        out_y.addmm_(m.T, form.x[rows])
        out_y.addmm_(p.T, along_rows.x[rows]).addmm_(q.T, along_columns.x[rows])
    return out_x, out_y


def _moves(form: Form, rows: slice, along_rows: Direction, along_columns: Direction) -> tuple[Tensor, Tensor]:
    """How the tile moves along each direction; computed once when the two are the same."""
    r_rows = _move(form, rows, along_rows)
    return r_rows, r_rows if along_rows is along_columns else _move(form, rows, along_columns)


def _move(form: Form, rows: slice, direction: Direction) -> Tensor:
    moved = torch.mm(direction.x[rows], form.y.T)
    return moved.addmm_(form.x[rows], direction.y.T).mul_(form.scale)
