# SPDX-License-Identifier: Apache-2.0
"""The global contrastive loss of FastCLIP (arXiv 2407.01445) with running per-sample normalisers, in the log domain.

Per anchor i, with d_i its positive's cosine: g1_i = mean_{j≠i} exp(s (I_i·T_j - d_i)), g2_i the same down the columns,
running estimates u ← (1-γ) u + γ g, and the surrogate whose gradient is the estimator:
L = ½ (1/N) Σ_i g1_i / (u1_i + ε) + g2_i / (u2_i + ε), u held constant.
It is CLIP's backward with log-sum-exps replaced by a1_i = s d_i + log(u1_i + ε) and a2_i. With γ = 1 and ε = 1/(N-1)
the gradients of the features are CLIP's exactly.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation
from clipkit.functional._checks import (
    as_scalar,
    check_choice,
    check_fraction,
    check_nonempty,
    check_pair,
    check_vector,
    common_type,
)
from clipkit.functional._ops import loss_op, nothing, only_if, register_closed_form
from clipkit.functional._products import Products, fake_gradients, positive_logits, products_wanted
from clipkit.parallel import (
    Layout,
    gather_rows,
    group_name,
    logaddexp_over_ranks,
    saved_like,
    sum_over_ranks,
    world_size_of,
)


def global_contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    log_u_image: Tensor,
    log_u_text: Tensor,
    *,
    gamma: float,
    eps: float = 1e-14,
    tau_grad: Literal["exact", "reference"] = "exact",
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """FastCLIP's surrogate loss and the new logarithms of the per-sample normalisers.

    Args:
        image_features: this rank's rows [n, d], L2-normalised.
        text_features: [n, d].
        logit_scale: the multiplier s = 1/τ: a float, a 0-D or a [1] tensor.
        log_u_image: [n], log u1 of this rank's samples; -inf means never visited (the new value is then log g1,
            whatever γ).
        log_u_text: [n], log u2.
        gamma: inner learning rate γ in (0, 1].
        eps: ε >= 0 inside the logarithm of the objective; 0 is legal.
        tau_grad: "exact" is the derivative of L; "reference" is twice it, what the published code computes (its two
            surrogate halves both differentiate every pair), to reproduce published settings.
        group: the process group that shares the batch; None for this process alone.
        backend: the engine's backend by name; None for the device's default.

    Returns:
        (loss, new log u1 [n], new log u2 [n]). The loss is 0-D fp32 (float64 for float64 inputs), equal on every rank,
        gradients as `clip_loss` describes; the new state carries no gradient and the caller's is not changed.

    Raises:
        TypeError, ValueError: as `clip_loss`; γ, ε or the state out of range; a global batch of one pair, which has no
        negatives.
    """
    check_pair(image_features=image_features, text_features=text_features)
    for name, log_u in (("log_u_image", log_u_image), ("log_u_text", log_u_text)):
        check_vector(name, log_u, image_features.shape[0], image_features, per="sample of this rank")
    check_fraction("gamma", gamma, low=0.0, high=1.0, low_open=True)
    check_fraction("eps", eps, low=0.0, high=math.inf)
    check_choice("tau_grad", tau_grad, ("exact", "reference"))
    image, text = common_type(image_features, text_features)
    scale = as_scalar("logit_scale", logit_scale, image)
    state = (log_u_image.detach().to(scale.dtype), log_u_text.detach().to(scale.dtype))
    reference = tau_grad == "reference"
    name = group_name(group)
    options = (gamma, eps, reference, *products_wanted(image, text), name, backend or "")
    loss, log_u1, log_u2, *_ = _gcl_forward(image, text, scale, *state, *options)
    return loss, log_u1.detach(), log_u2.detach()


@loss_op("global_contrastive_forward")
def _gcl_forward(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    log_u_image: Tensor,
    log_u_text: Tensor,
    gamma: float,
    eps: float,
    reference: bool,
    want_image: bool,
    want_text: bool,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, log u1, log u2, row offset a1 [n], column offset a2 [N], positives' weight [n], all ranks' text,
    layout).
    """
    layout = Layout.of(image, group, (want_image, want_text))
    check_nonempty(layout.total, least=2)
    all_text = gather_rows(text, layout)
    row_lse, column_lse = sweeps.log_sum_exps(image, all_text, scale, diagonal=layout.start, backend=backend)
    column_lse = logaddexp_over_ranks(column_lse, layout)[layout.mine]
    positive = positive_logits(image, text, scale)
    log_g = [lse - positive - math.log(layout.total - 1) for lse in (row_lse, column_lse)]
    log_u = [_advance(old, new, gamma) for old, new in zip((log_u_image, log_u_text), log_g, strict=True)]
    smoothed = [_log_plus(value, eps) for value in log_u]
    # g / (u + ε) <= 1/γ, so this exponential cannot overflow.
    ratios = [(new - floor).exp() for new, floor in zip(log_g, smoothed, strict=True)]
    loss = sum_over_ranks((ratios[0] + ratios[1]).sum(), layout) / (2 * layout.total)
    diagonal_weight = -(layout.total - 1) * (ratios[0] + ratios[1])
    column_offset = gather_rows(positive + smoothed[1], layout)
    kept_text = nothing(text) if layout.group is None else all_text
    row_offset = positive + smoothed[0]
    return loss, log_u[0], log_u[1], row_offset, column_offset, diagonal_weight, kept_text, layout.saved()


@_gcl_forward.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    log_u_image: Tensor,
    log_u_text: Tensor,
    gamma: float,
    eps: float,
    reference: bool,
    want_image: bool,
    want_text: bool,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, rows, ranks = accumulation(image), image.shape[0], world_size_of(group)
    total = rows if ranks == 1 else torch.library.get_ctx().new_dynamic_size()
    kept_text = nothing(text) if ranks == 1 else text.new_empty(total, text.shape[1])
    vectors = [image.new_empty(size, dtype=dtype) for size in (rows, rows, rows, total, rows)]
    loss, layout = image.new_empty((), dtype=dtype), saved_like(group, wants=2)
    return loss, vectors[0], vectors[1], vectors[2], vectors[3], vectors[4], kept_text, layout


@loss_op("global_contrastive_backward")
def _gcl_backward(
    grad: Tensor,
    gamma: float,
    eps: float,
    reference: bool,
    want_image: bool,
    want_text: bool,
    group: str,
    backend: str,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    log_u_image: Tensor,
    log_u_text: Tensor,
    new_log_u_image: Tensor,
    new_log_u_text: Tensor,
    row_offset: Tensor,
    column_offset: Tensor,
    diagonal_weight: Tensor,
    kept_text: Tensor,
    saved_layout: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of image, text and scale in the accumulation type; a tower's is empty where not wanted."""
    layout = Layout.recall(saved_layout, group)
    products = Products(
        *sweeps.exponential_products(
            image,
            text if layout.group is None else kept_text,
            scale,
            row_offset=row_offset,
            column_offset=column_offset,
            diagonal=layout.start,
            diagonal_weight=diagonal_weight,
            want_x=layout.wants[0],
            want_y=layout.wants[1],
            backend=backend,
        )
    ).collect(layout)
    unit = grad / (2 * layout.total * (layout.total - 1))
    grad_image, grad_text, grad_scale = products.unit_gradients(image, text, scale, unit, layout)
    grad_scale = grad_scale * (2 if reference else 1)
    return only_if(want_image, grad_image), only_if(want_text, grad_text), grad_scale


@_gcl_backward.register_fake
def _(
    grad: Tensor,
    gamma: float,
    eps: float,
    reference: bool,
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


register_closed_form(_gcl_forward, _gcl_backward, tensors=5)


def _advance(log_u: Tensor, log_g: Tensor, gamma: float) -> Tensor:
    """log of (1-γ) u + γ g; log g on the first visit, and always when γ = 1."""
    if gamma == 1.0:
        return log_g.clone()
    moved = torch.logaddexp(log_u + math.log1p(-gamma), log_g + math.log(gamma))
    return torch.where(log_u.isneginf(), log_g, moved)


def _log_plus(log_u: Tensor, eps: float) -> Tensor:
    """log(u + ε)."""
    if eps == 0.0:
        return log_u
    return torch.logaddexp(log_u, torch.full_like(log_u, math.log(eps)))
