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

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine.precision import accumulation, softplus, widen
from clipkit.engine.workspace import Workspace
from clipkit.functional._checks import agree, as_scalar, check_bytes, check_fraction, check_pair, common_type
from clipkit.functional._margins import Margins
from clipkit.functional._ops import fake_gradients, loss_op, nothing, register_gradients, shared, wanted
from clipkit.functional._products import Products
from clipkit.parallel import Layout, announced, gather_rows, group_name, sum_over_ranks


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    *,
    label_smoothing: float = 0.0,
    workspace: int | None = None,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """CLIP's loss over the global batch, in nats, without ever holding the matrix of logits.

    Args:
        image_features: this rank's rows [n, d], fp32, bf16, fp16 or float64, usually L2-normalised.
        text_features: [n, d], row i belonging to image i. Ranks may hold different n, and none.
        logit_scale: the multiplier of the inner products (already exponentiated): a float, a 0-D or a [1] tensor.
        label_smoothing: ε in [0, 1]; ε/N of the target mass goes to every pair, the positive included.
        workspace: bytes that the call may take, for as long as it runs, to keep the logits between their two uses:
            4·n·N, n pairs of this rank and N of all (8·n·N for float64). Where they fit, one matrix product of four is
            saved; where they do not, or the backend would not gain by it, nothing is kept. Results are the same. None
            and 0 keep nothing.
        group: the process group that shares the batch; None for this process alone.
        backend: the engine's backend by name; None for the device's default (`clipkit doctor` prints it).

    Returns:
        0-D fp32 (float64 for float64 inputs), equal on every rank. After the mean that DDP or FSDP takes over ranks,
        gradients are those of one process holding the whole batch; the gradient of `logit_scale` already is the global
        one on each rank.

    Raises:
        TypeError: an argument of a wrong kind or dtype.
        ValueError: shapes, widths or devices that do not fit together, an unknown or unusable backend, an empty global
            batch; on every other rank of the group, that one rank's arguments were refused.
    """
    name = group_name(group)
    with announced(name):
        check_pair(image_features=image_features, text_features=text_features)
        check_fraction("label_smoothing", label_smoothing, low=0.0, high=1.0)
        check_bytes("workspace", workspace)
        image, text = common_type(image_features, text_features)
        scale = as_scalar("logit_scale", logit_scale, image)
    wants = wanted(image, text, scale)
    options = (float(label_smoothing), workspace or 0, wants, name, backend or "")
    return shared(_clip(image, text, scale, *options)[0], name)


@loss_op("clip")
def _clip(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    label_smoothing: float,
    workspace: int,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, unit gradients of image, text and scale)."""
    layout = agree(image, group, "clip_loss", label_smoothing, wants=wants, backend=backend)
    all_text = gather_rows(text, layout)
    kept = Workspace(workspace if any(layout.wants) else 0)
    margins = Margins.of(image, text, all_text, scale, layout, backend, kept)
    losses = softplus(margins.row) + softplus(margins.column)
    loss = sum_over_ranks(losses.sum(), layout) / (2 * layout.total)
    smoothing = _Smoothing.of(image, text, label_smoothing, layout) if label_smoothing else None
    if smoothing:
        loss = loss + smoothing.loss(margins.positive, scale, layout)
    if not any(layout.wants):
        return loss, *nothing(loss)
    products = Products.exponential(
        image,
        all_text,
        scale,
        layout,
        row_offset=margins.row_lse,
        column_offset=margins.column_lse,
        diagonal_weight=-(torch.sigmoid(margins.row) + torch.sigmoid(margins.column)),
        wants=layout.wants,
        backend=backend,
        workspace=kept,
    )
    if smoothing:
        smoothing.add_to(products, image, text)
    return loss, *products.gradients(image, text, scale, layout, unit=1 / (2 * layout.total), wants=wants)


@_clip.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    label_smoothing: float,
    workspace: int,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = image.new_empty((), dtype=accumulation(image))
    return loss, *fake_gradients(wants, loss, image, text, scale)


register_gradients(_clip, count=3)


class _Smoothing(NamedTuple):
    """The rank-one part of label smoothing, ε (mean_i S_ii - mean_ij S_ij): from the towers' means, in O(n·d)."""

    amount: float
    mean_image: Tensor
    mean_text: Tensor

    @classmethod
    def of(cls, image: Tensor, text: Tensor, amount: float, layout: Layout) -> _Smoothing:
        sums = sum_over_ranks(torch.stack([widen(tower).sum(0) for tower in (image, text)]), layout)
        return cls(amount, *(sums / layout.total))

    def loss(self, positive: Tensor, scale: Tensor, layout: Layout) -> Tensor:
        """What it adds to the loss; `positive` [n] are this rank's S_ii."""
        mean_logit = scale * torch.dot(self.mean_image, self.mean_text)
        return self.amount * (sum_over_ranks(positive.sum(), layout) / layout.total - mean_logit)

    def add_to(self, products: Products, image: Tensor, text: Tensor) -> None:
        """Add 2ε (own pair - mean of the other tower), its part of G in the units of `products`."""
        for product, other, mean in ((products.g_y, text, self.mean_text), (products.gt_x, image, self.mean_image)):
            if product is not None:
                product.add_(widen(other) - mean, alpha=2 * self.amount)
