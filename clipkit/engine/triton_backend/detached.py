# SPDX-License-Identifier: Apache-2.0
"""One-directional softmax on Triton, in two passes over S: row log-sum-exps, then the weights.

One pass that rescales its sum Σ P_ij y_j as it goes would do for detached keys. But at d >= 512 that sum takes half or
all of a multiprocessor's registers and its tiles of 64 rows draw twice the operand bytes a FLOP; two passes are three
products of full-sized tiles, and the same for keys that want a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.precision import softplus, widen
from clipkit.engine.triton_backend.settings import product_precision


def softmax_sweep(
    x: Tensor, y: Tensor, scale: Tensor, labels: Tensor, *, want_x: bool, want_y: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.softmax_sweep`."""
    from clipkit.kernels import exponential_products as kernel
    from clipkit.kernels.row_statistics import row_lse

    labels, precision = labels.contiguous(), product_precision()
    # Margin form: log-sum-exp over the negatives minus the positive; softplus of it is the loss, exact when tiny.
    negatives = row_lse(x, y, scale, labels=labels, precision=precision)
    positive = scale * torch.linalg.vecdot(widen(x), widen(y[labels]))
    margin = negatives - positive
    g_y, gt_x = kernel.exponential_products(
        x,
        y,
        scale,
        row_offset=torch.logaddexp(negatives, positive),
        column_offset=None,
        own_weight=-torch.sigmoid(margin),
        labels=labels,
        want_x=want_x,
        want_y=want_y,
        precision=precision,
    )
    return softplus(margin).sum(), g_y, gt_x
