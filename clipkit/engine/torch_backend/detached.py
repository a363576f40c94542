# SPDX-License-Identifier: Apache-2.0
"""One-directional softmax: the row's normaliser is known inside its own tile, so loss and gradients come out of one
sweep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.precision import softplus
from clipkit.engine.torch_backend.tiles import Form


def softmax_sweep(
    x: Tensor, y: Tensor, scale: Tensor, labels: Tensor, *, want_x: bool, want_y: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.softmax_sweep`."""
    form = Form.of(x, y, scale)
    loss = form.x.new_zeros(())
    g_y = torch.empty_like(form.x) if want_x else None
    gt_x = torch.zeros_like(form.y) if want_y else None
    for rows in form.blocks():
        tile = form.logits(rows)
        column = labels[rows, None]
        positive = tile.gather(1, column)
        tile.scatter_(1, column, -torch.inf)
        # Margin form: log-sum-exp over the negatives minus the positive; softplus of it is the loss, exact when tiny.
        negatives = torch.logsumexp(tile, dim=1, keepdim=True)
        margin = negatives - positive
        loss += softplus(margin).sum()
        if g_y is None and gt_x is None:
            continue
        weights = tile.sub_(torch.logaddexp(negatives, positive)).exp_()
        weights.scatter_(1, column, -torch.sigmoid(margin))
        if g_y is not None:
            torch.mm(weights, form.y, out=g_y[rows])
        if gt_x is not None:
            gt_x.addmm_(weights.T, form.x[rows])
    return loss, g_y, gt_x
