# SPDX-License-Identifier: Apache-2.0
"""The pairwise sigmoid loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343, algorithm 1), exact over the global batch.

With X = scale · I Tᵀ + bias and z = +1 on pairs that belong together, -1 elsewhere: L = (1/N) Σ_ij softplus(-z_ij
X_ij). There is no normaliser, so loss and gradients come out of one sweep.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation
from clipkit.functional._checks import as_scalar, check_nonempty, check_pair, common_type
from clipkit.functional._ops import loss_op, nothing, register_unit_gradients, wants_gradient
from clipkit.functional._products import Products
from clipkit.parallel import Layout, gather_rows, group_name, sum_over_ranks


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """SigLIP's loss over the global batch, in nats per row (divided by N, not N²).

    Args:
        image_features: this rank's rows [n, d], fp32, bf16, fp16 or float64, usually L2-normalised.
        text_features: [n, d], row i belonging to image i.
        logit_scale: the multiplier (already exponentiated): a float, a 0-D or a [1] tensor.
        logit_bias: added to every logit: a float, a 0-D or a [1] tensor.
        group: the process group that shares the batch; None for this process alone.
        backend: the engine's backend by name; None for the device's default.

    Returns:
        0-D fp32 (float64 for float64 inputs), equal on every rank; gradients as `clip_loss` describes, the bias's like
        the scale's.

    Raises:
        TypeError, ValueError: as `clip_loss`.
    """
    check_pair(image_features=image_features, text_features=text_features)
    image, text = common_type(image_features, text_features)
    scale, bias = as_scalar("logit_scale", logit_scale, image), as_scalar("logit_bias", logit_bias, image)
    want = wants_gradient(image, text, scale, bias)
    return _siglip(image, text, scale, bias, want, group_name(group), backend or "")[0]


@loss_op("siglip")
def _siglip(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, want_gradients: bool, group: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, unit gradients of image, text, scale and bias in the accumulation type; empty where not wanted)."""
    layout = Layout.of(image, group, (want_gradients,))
    check_nonempty(layout.total)
    loss, g_text, gt_image, g_sum = sweeps.sigmoid_sweep(
        image,
        gather_rows(text, layout),
        scale,
        bias,
        diagonal=layout.start,
        want_gradients=layout.wants[0],
        backend=backend,
    )
    loss = sum_over_ranks(loss, layout) / layout.total
    if g_sum is None:
        return loss, nothing(loss), nothing(loss), nothing(loss), nothing(loss)
    unit = torch.full_like(loss, 1 / layout.total)
    gradients = Products(g_text, gt_image).collect(layout).unit_gradients(image, text, scale, unit, layout)
    grad_bias = unit * sum_over_ranks(g_sum, layout)
    if not want_gradients:  # another rank wanted its own
        return loss, nothing(loss), nothing(loss), nothing(loss), nothing(loss)
    return loss, *gradients, grad_bias


@_siglip.register_fake
def _(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, want_gradients: bool, group: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation(image)
    loss = image.new_empty((), dtype=dtype)
    if not want_gradients:
        return loss, nothing(loss), nothing(loss), nothing(loss), nothing(loss)
    image_grad, text_grad = (torch.empty_like(tower, dtype=dtype) for tower in (image, text))
    return loss, image_grad, text_grad, torch.empty_like(loss), torch.empty_like(loss)


register_unit_gradients(_siglip)
