# SPDX-License-Identifier: Apache-2.0
"""The symmetric contrastive loss of CLIP (Radford et al. 2021, arXiv 2103.00020, figure 3), exact over the global
batch.

With S = scale · I Tᵀ, r and c its row and column log-sum-exps over N pairs:
L = 1/(2N) Σ_i (r_i - S_ii) + (c_i - S_ii),  ∂L/∂S = (P + Q - 2·Id)/(2N), P and Q the row and column softmax.

Both terms are computed in margin form: with δ_i the log-sum-exp over the negatives minus S_ii, r_i - S_ii =
softplus(δ_i) and 1 - P_ii = σ(δ_i). In fp32 r_i - S_ii itself would be a difference of numbers near 100, lost below
7.6e-6.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation, softplus, widen
from clipkit.functional._checks import as_scalar, check_fraction, check_nonempty, check_pair, common_type
from clipkit.functional._margins import Margins
from clipkit.functional._ops import loss_op, nothing, only_if, register_closed_form
from clipkit.functional._products import Products, fake_gradients, products_wanted
from clipkit.parallel import Layout, gather_rows, group_name, saved_like, sum_over_ranks, world_size_of


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    *,
    label_smoothing: float = 0.0,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """CLIP's loss over the global batch, in nats, without ever holding the matrix of logits.

    Args:
        image_features: this rank's rows [n, d], fp32, bf16, fp16 or float64, usually L2-normalised.
        text_features: [n, d], row i belonging to image i. Ranks may hold different n, and none.
        logit_scale: the multiplier of the inner products (already exponentiated): a float, a 0-D or a [1] tensor.
        label_smoothing: ε in [0, 1]; ε/N of the target mass goes to every pair, the positive included.
        group: the process group that shares the batch; None for this process alone.
        backend: the engine's backend by name; None for the device's default (`clipkit doctor` prints it).

    Returns:
        0-D fp32 (float64 for float64 inputs), equal on every rank. After the mean that DDP or FSDP takes over ranks,
        gradients are those of one process holding the whole batch; the gradient of `logit_scale` already is the global
        one on each rank.

    Raises:
        TypeError: an argument of a wrong kind or dtype.
        ValueError: shapes, widths or devices that do not fit together, an unknown or unusable backend, or an empty
        global batch.
    """
    check_pair(image_features=image_features, text_features=text_features)
    check_fraction("label_smoothing", label_smoothing, low=0.0, high=1.0)
    image, text = common_type(image_features, text_features)
    scale = as_scalar("logit_scale", logit_scale, image)
    options = (float(label_smoothing), *products_wanted(image, text), group_name(group), backend or "")
    return _clip_forward(image, text, scale, *options)[0]


@loss_op("clip_forward")
def _clip_forward(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    label_smoothing: float,
    want_image: bool,
    want_text: bool,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, row LSE [n], column LSE [N], positives' weight in G [n], all ranks' text [N, d] unless alone, layout)."""
    layout = Layout.of(image, group, (want_image, want_text))
    check_nonempty(layout.total)
    all_text = gather_rows(text, layout)
    margins = Margins.of(image, text, all_text, scale, layout, backend)
    losses = softplus(margins.row) + softplus(margins.column)
    loss = sum_over_ranks(losses.sum(), layout) / (2 * layout.total)
    if label_smoothing:
        loss = loss + label_smoothing * _smoothing_term(image, text, margins.positive, scale, layout)
    diagonal_weight = -(torch.sigmoid(margins.row) + torch.sigmoid(margins.column))
    kept_text = nothing(text) if layout.group is None else all_text
    return loss, margins.row_lse, margins.column_lse, diagonal_weight, kept_text, layout.saved()


@_clip_forward.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    label_smoothing: float,
    want_image: bool,
    want_text: bool,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, rows, ranks = accumulation(image), image.shape[0], world_size_of(group)
    total = rows if ranks == 1 else torch.library.get_ctx().new_dynamic_size()
    kept_text = nothing(text) if ranks == 1 else text.new_empty(total, text.shape[1])
    vector, loss = image.new_empty(rows, dtype=dtype), image.new_empty((), dtype=dtype)
    column_lse, layout = image.new_empty(total, dtype=dtype), saved_like(group, wants=2)
    return loss, vector, column_lse, torch.empty_like(vector), kept_text, layout


@loss_op("clip_backward")
def _clip_backward(
    grad: Tensor,
    label_smoothing: float,
    want_image: bool,
    want_text: bool,
    group: str,
    backend: str,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    diagonal_weight: Tensor,
    kept_text: Tensor,
    saved_layout: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of image, text and scale in the accumulation type; a tower's is empty where not wanted."""
    layout = Layout.recall(saved_layout, group)
    g_text, gt_image = sweeps.exponential_products(
        image,
        text if layout.group is None else kept_text,
        scale,
        row_offset=row_lse,
        column_offset=column_lse,
        diagonal=layout.start,
        diagonal_weight=diagonal_weight,
        want_x=layout.wants[0],
        want_y=layout.wants[1],
        backend=backend,
    )
    products = Products(g_text, gt_image).collect(layout)
    if label_smoothing:
        _add_smoothing_gradient(products, image, text, label_smoothing, layout)
    unit = grad / (2 * layout.total)
    grad_image, grad_text, grad_scale = products.unit_gradients(image, text, scale, unit, layout)
    return only_if(want_image, grad_image), only_if(want_text, grad_text), grad_scale


@_clip_backward.register_fake
def _(
    grad: Tensor,
    label_smoothing: float,
    want_image: bool,
    want_text: bool,
    group: str,
    backend: str,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *rest: object,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(grad, image, text, scale, want_image, want_text)


register_closed_form(_clip_forward, _clip_backward, tensors=3)


def _smoothing_term(image: Tensor, text: Tensor, positive: Tensor, scale: Tensor, layout: Layout) -> Tensor:
    """mean_i S_ii - mean_ij S_ij: the sum over all logits is rank one, s <Σ image, Σ text>, so it costs O(n·d)."""
    sum_image, sum_text = (sum_over_ranks(widen(tower).sum(0), layout) for tower in (image, text))
    every_logit = scale * torch.dot(sum_image, sum_text)
    return (sum_over_ranks(positive.sum(), layout) - every_logit / layout.total) / layout.total


def _add_smoothing_gradient(
    products: Products, image: Tensor, text: Tensor, label_smoothing: float, layout: Layout
) -> None:
    """Add the rank-one part, 2ε (own pair - mean of the other tower), in the units of `Products`."""
    for product, other in ((products.g_y, text), (products.gt_x, image)):
        if product is not None:
            mean = sum_over_ranks(widen(other).sum(0), layout) / layout.total
            product.add_(widen(other) - mean, alpha=2 * label_smoothing)
