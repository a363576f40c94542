# SPDX-License-Identifier: Apache-2.0
"""The pairwise sigmoid loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343, algorithm 1), exact over the global batch.

With X = scale · I Tᵀ + bias and z = +1 on pairs that belong together, -1 elsewhere: L = (1/N) Σ_ij softplus(-z_ij
X_ij). There is no normaliser, so loss and gradients come out of one sweep.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation
from clipkit.functional._checks import agree, as_scalar, check_pair, common_type
from clipkit.functional._ops import (
    fake_gradient,
    fake_gradients,
    loss_op,
    nothing,
    only_if,
    register_gradients,
    shared,
    wanted,
)
from clipkit.functional._products import Products
from clipkit.parallel import announced, gather_rows, group_name, sum_over_ranks


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
    name = group_name(group)
    with announced(name):
        check_pair(image_features=image_features, text_features=text_features)
        image, text = common_type(image_features, text_features)
        scale, bias = as_scalar("logit_scale", logit_scale, image), as_scalar("logit_bias", logit_bias, image)
    wants = wanted(image, text, scale, bias)
    return shared(_siglip(image, text, scale, bias, wants, name, backend or "")[0], name)


@loss_op("siglip")
def _siglip(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, wants: Sequence[bool], group: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, unit gradients of image, text, scale and bias)."""
    layout = agree(image, group, "siglip_loss", wants=wants, backend=backend)
    loss, g_text, gt_image, g_sum = sweeps.sigmoid_sweep(
        image,
        gather_rows(text, layout),
        scale,
        bias,
        diagonal=layout.start,
        want_gradients=any(layout.wants),
        backend=backend,
    )
    loss = sum_over_ranks(loss, layout) / layout.total
    if g_sum is None:
        return loss, *nothing(loss), loss.new_empty(0)
    unit = 1 / layout.total
    products = Products.collect(g_text, gt_image, layout)
    gradients = products.gradients(image, text, scale, layout, unit=unit, wants=wants[:3])
    return loss, *gradients, only_if(wants[3], unit * sum_over_ranks(g_sum, layout), like=loss)


@_siglip.register_fake
def _(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, wants: Sequence[bool], group: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    loss = image.new_empty((), dtype=accumulation(image))
    return loss, *fake_gradients(wants[:3], loss, image, text, scale), fake_gradient(wants[3], bias, loss)


register_gradients(_siglip, count=4)
