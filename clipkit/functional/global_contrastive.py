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
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine.precision import accumulation
from clipkit.functional._checks import (
    agree,
    as_scalar,
    check_choice,
    check_fraction,
    check_pair,
    check_vector,
    common_type,
)
from clipkit.functional._margins import log_sum_exps_over_ranks
from clipkit.functional._ops import fake_gradients, loss_op, nothing, register_gradients, shared, wanted
from clipkit.functional._products import Products, positive_logits
from clipkit.parallel import announced, gather_rows, group_name, sum_over_ranks


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
    name = group_name(group)
    with announced(name):
        check_pair(image_features=image_features, text_features=text_features)
        for which, log_u in (("log_u_image", log_u_image), ("log_u_text", log_u_text)):
            check_vector(which, log_u, image_features.shape[0], image_features, per="sample of this rank")
        check_fraction("gamma", gamma, low=0.0, high=1.0, low_open=True)
        check_fraction("eps", eps, low=0.0, high=math.inf)
        check_choice("tau_grad", tau_grad, ("exact", "reference"))
        image, text = common_type(image_features, text_features)
        scale = as_scalar("logit_scale", logit_scale, image)
    state = (log_u_image.detach().to(scale.dtype), log_u_text.detach().to(scale.dtype))
    options = (float(gamma), float(eps), tau_grad == "reference", wanted(image, text, scale), name, backend or "")
    loss, log_u1, log_u2, *_ = _global_contrastive(image, text, scale, *state, *options)
    return shared(loss, name), log_u1.detach(), log_u2.detach()


@loss_op("global_contrastive")
def _global_contrastive(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    log_u_image: Tensor,
    log_u_text: Tensor,
    gamma: float,
    eps: float,
    reference: bool,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, log u1, log u2, unit gradients of image, text and scale)."""
    settings = ("global_contrastive_loss", gamma, eps, reference)
    layout = agree(image, group, *settings, wants=wants, backend=backend, least=2)
    all_text = gather_rows(text, layout)
    rows, columns = log_sum_exps_over_ranks(image, all_text, scale, layout, diagonal=layout.start, backend=backend)
    positive = positive_logits(image, text, scale)
    log_g = [lse - positive - math.log(layout.total - 1) for lse in (rows, columns[layout.mine])]
    log_u1, log_u2 = (_advance(old, new, gamma) for old, new in zip((log_u_image, log_u_text), log_g, strict=True))
    smoothed = [_log_plus(log_u1, eps), _log_plus(log_u2, eps)]
    # g / (u + ε) <= 1/γ, so this exponential cannot overflow.
    ratios = [(new - floor).exp() for new, floor in zip(log_g, smoothed, strict=True)]
    loss = sum_over_ranks((ratios[0] + ratios[1]).sum(), layout) / (2 * layout.total)
    if not any(layout.wants):
        return loss, log_u1, log_u2, *nothing(loss)
    # A pair's term is at most (N-1)/γ; in units of that, it fits whatever a backend holds weights in.
    largest = (layout.total - 1) / gamma
    offsets = [positive + floor + math.log(largest) for floor in smoothed]
    products = Products.exponential(
        image,
        all_text,
        scale,
        layout,
        row_offset=offsets[0],
        column_offset=gather_rows(offsets[1], layout),
        diagonal_weight=-gamma * (ratios[0] + ratios[1]),
        wants=layout.wants,
        backend=backend,
    )
    unit = 1 / (2 * layout.total * gamma)
    image_grad, text_grad, scale_grad = products.gradients(image, text, scale, layout, unit=unit, wants=wants)
    return loss, log_u1, log_u2, image_grad, text_grad, scale_grad * (2 if reference else 1)


@_global_contrastive.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    log_u_image: Tensor,
    log_u_text: Tensor,
    gamma: float,
    eps: float,
    reference: bool,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    loss = image.new_empty((), dtype=accumulation(image))
    state = (torch.empty_like(log_u_image), torch.empty_like(log_u_text))
    return loss, *state, *fake_gradients(wants, loss, image, text, scale)


register_gradients(_global_contrastive, count=3)


def _advance(log_u: Tensor, log_g: Tensor, gamma: float) -> Tensor:
    """log of (1-γ) u + γ g; log g on the first visit, and always when γ = 1."""
    if gamma == 1.0:
        return log_g
    moved = torch.logaddexp(log_u + math.log1p(-gamma), log_g + math.log(gamma))
    return torch.where(log_u.isneginf(), log_g, moved)


def _log_plus(log_u: Tensor, eps: float) -> Tensor:
    """log(u + ε)."""
    if eps == 0.0:
        return log_u
    return torch.logaddexp(log_u, torch.full_like(log_u, math.log(eps)))
