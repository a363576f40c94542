# SPDX-License-Identifier: Apache-2.0
"""One-directional softmax on Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.precision import softplus, widen
from clipkit.engine.triton_backend.settings import product_precision


def softmax_sweep(
    x: Tensor, y: Tensor, scale: Tensor, labels: Tensor, *, want_x: bool, want_y: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.softmax_sweep`."""
    from clipkit.kernels import softmax_products as kernel

    labels = labels.contiguous()
    positive = scale * torch.linalg.vecdot(widen(x), widen(y[labels]))
    negatives, g_y, gt_x = kernel.softmax_products(
        x, y, scale, labels=labels, positive=positive, want_x=want_x, want_y=want_y, precision=product_precision()
    )
    # Margin form: log-sum-exp over the negatives minus the positive; softplus of it is the loss, exact when tiny.
    return softplus(negatives - positive).sum(), g_y, gt_x
