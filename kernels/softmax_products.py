# SPDX-License-Identifier: Apache-2.0
"""One-directional softmax: its statistics and the products of its gradient, from one computation of S where that pays.

A row's normaliser is known as soon as the row is, so a wave of rows can do with one computation: row_sweep leaves the
wave's products in the workspace and the weights are made of them. A single pass that rescales its sum Σ P_ij y_j as it
goes would need no workspace, but at d >= 512 that sum takes half or all of a multiprocessor's registers and its tiles
of 64 rows draw twice the operand bytes a FLOP.
"""

from __future__ import annotations

import torch

from .exponential_products import Terms, exponential_products, write_exponential_weights
from .form import Form, Own, on_device_of
from .kept import keeping_pays, unwritten
from .row_statistics import row_lse
from .waves import DEFAULT_WORKSPACE_BYTES, add_product, waves


def softmax_products(
    x: torch.Tensor,
    y: torch.Tensor,
    scale: float | torch.Tensor,
    *,
    labels: torch.Tensor,
    positive: torch.Tensor,
    want_x: bool,
    want_y: bool,
    precision: str = "ieee",
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(LSE [N] of S over all but the label's column, G Y [N, d], Gᵀ X [M, d]) in fp32, products None where not wanted,
    for G = row softmax of S minus one-hot(labels); x [N, d], y [M, d], labels int64 [N], and `positive` [N] fp32 the
    logits of the labels.
    """
    form, own = Form.of(x, y, scale, precision), Own("labels", labels=labels)
    # A third of the rows fit when 16-bit weights lie beside their fp32 products, and Gᵀ X pays for every wave.
    if want_x and keeping_pays(x, precision) and (not want_y or x.dtype == torch.float32):
        return _from_kept(form, own, positive, want_y, workspace_bytes)
    negatives = row_lse(form, own)
    if not (want_x or want_y):
        return negatives, None, None
    terms = _terms(negatives, positive)
    g_y, gt_x = exponential_products(
        x,
        y,
        scale,
        row_offset=terms.row_offset,
        column_offset=None,
        own_weight=terms.own_weight,
        labels=labels,
        want_x=want_x,
        want_y=want_y,
        precision=precision,
        workspace_bytes=workspace_bytes,
    )
    return negatives, g_y, gt_x


def _from_kept(
    form: Form, own: Own, positive: torch.Tensor, want_y: bool, workspace_bytes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Wave after wave: products and LSEs, weights, G Y. fp32 weights take the place of their products; products and
    weights together stay within the workspace.
    """
    negatives = torch.full((form.rows,), -torch.inf, dtype=torch.float32, device=form.x.device)
    g_y = torch.zeros_like(form.x, dtype=torch.float32)
    gt_x = torch.zeros_like(form.y, dtype=torch.float32) if want_y else None
    tile = form.tile_for("one-sided gradient")
    in_place = form.x.dtype == torch.float32
    height = {"block_rows": tile.block_m, "workspace_bytes": workspace_bytes // (1 if in_place else 3)}
    memory = None
    with on_device_of(form.x):
        for rows, (weights,) in waves(form, **height):
            if memory is None:  # the first wave is the highest
                memory = weights if in_place else unwritten(form, len(weights))
            kept = memory[: len(weights)]
            band, band_own = form.band(rows.start, rows.stop), own.band(rows.start, rows.stop)
            negatives[rows] = row_lse(band, band_own, kept=kept)
            terms = _terms(negatives[rows], positive[rows])
            write_exponential_weights(band, band_own, terms, tile, weights, kept)
            add_product(g_y[rows], weights, form.y)
            if gt_x is not None:
                add_product(gt_x, weights.T, form.x[rows])
    return negatives, g_y, gt_x


def _terms(negatives: torch.Tensor, positive: torch.Tensor) -> Terms:
    """P and, at the label, P - 1 by its own formula."""
    offset = torch.logaddexp(negatives, positive)
    return Terms(offset, None, None, None, -torch.sigmoid(negatives - positive)).contiguous()
