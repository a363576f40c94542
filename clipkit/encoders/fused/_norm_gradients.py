# SPDX-License-Identifier: Apache-2.0
"""The operator of LayerNorm's gradients, which the two residual sums share."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.encoders.fused._shared import as_rows
from clipkit.engine import norms
from clipkit.engine.precision import accumulation


@torch.library.custom_op("clipkit::norm_gradients", mutates_args=())
def norm_gradients(
    grad: Tensor, residual: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`clipkit.engine.norms.norm_gradients` for [..., width]."""
    past = None if residual is None else as_rows(residual)
    statistics = (mean.flatten(), rstd.flatten())
    d_x, d_weight, d_bias = norms.norm_gradients(as_rows(grad), past, as_rows(x), weight, *statistics, backend=backend)
    return d_x.view(x.shape), d_weight, d_bias


@norm_gradients.register_fake
def _(
    grad: Tensor, residual: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    vector = weight.new_empty(weight.shape, dtype=accumulation(x))
    return x.new_empty(x.shape), vector, torch.empty_like(vector)
