# SPDX-License-Identifier: Apache-2.0
"""Sigmoid family: no statistics, so loss and gradients come out of one sweep; positives are the diagonal or a CSR
list.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.precision import softplus, widen
from clipkit.engine.torch_backend.tiles import Form, positives, row_blocks


def sigmoid_sweep(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, *, diagonal: int, want_gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.sigmoid_sweep`."""
    form = Form.of(x, y, scale)
    loss = form.x.new_zeros(())
    g_y, gt_x, g_sum = _accumulators(form.x, form.y, want_gradients, columns=False)
    for rows in form.blocks():
        # Where z = +1 the sign is turned, so that one softplus and one sigmoid serve both cases without cancellation.
        tile = form.logits(rows).add_(bias)
        positives(tile, rows, diagonal).neg_()
        loss += softplus(tile).sum()
        if g_y is None or gt_x is None or g_sum is None:
            continue
        weights = tile.sigmoid_()
        positives(weights, rows, diagonal).neg_()
        torch.mm(weights, form.y, out=g_y[rows])
        gt_x.addmm_(weights.T, form.x[rows])
        g_sum += weights.sum()
    return loss, g_y, gt_x, g_sum


def labelled_sigmoid_sweep(
    x: Tensor, weight: Tensor, bias: Tensor, target_offsets: Tensor, target_indices: Tensor, *, want_gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.labelled_sigmoid_sweep`. A label listed twice in a row counts once."""
    inputs, classes = widen(x), widen(weight)
    loss = inputs.new_zeros(())
    g_w, gt_x, g_columns = _accumulators(inputs, classes, want_gradients, columns=True)
    target_rows = _rows_of_targets(target_offsets, target_indices)
    for rows in row_blocks(inputs.shape[0], classes.shape[0], inputs):
        height = rows.stop - rows.start
        # One spare row takes the targets of other blocks: choosing this block's by a mask would wait for the device.
        buffer = inputs.new_empty(height + 1, classes.shape[0])
        tile = torch.addmm(bias.to(inputs.dtype), inputs[rows], classes.T, out=buffer[:height])
        here = (target_rows >= rows.start) & (target_rows < rows.stop)
        at = (torch.where(here, target_rows - rows.start, height), target_indices)
        buffer[height] = 0.0
        buffer[at] = -buffer[at]
        loss += softplus(tile).sum()
        if g_w is None or gt_x is None or g_columns is None:
            continue
        weights = tile.sigmoid_()
        buffer[at] = -buffer[at]
        torch.mm(weights, classes, out=g_w[rows])
        gt_x.addmm_(weights.T, inputs[rows])
        g_columns += weights.sum(0)
    return loss, g_w, gt_x, g_columns


def _accumulators(
    x: Tensor, y: Tensor, wanted: bool, *, columns: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if not wanted:
        return None, None, None
    return torch.empty_like(x), torch.zeros_like(y), x.new_zeros(y.shape[0] if columns else ())


def _rows_of_targets(offsets: Tensor, indices: Tensor) -> Tensor:
    """The row of every CSR entry, [number of targets]."""
    rows = torch.arange(offsets.numel() - 1, device=indices.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=indices.numel())
