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
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine.precision import accumulation
from clipkit.functional._anchors import Anchors, gather_keys
from clipkit.functional._checks import (
    agree,
    as_scalar,
    check_choice,
    check_fraction,
    check_pair,
    check_vector,
    common_type,
)
from clipkit.functional._ops import (
    Gradients,
    fake_gradients,
    loss_op,
    nothing,
    only_wanted,
    register_gradients,
    shared,
    wanted,
)
from clipkit.functional._products import Products
from clipkit.functional._samples import Samples
from clipkit.parallel import ALONE, announced, group_name


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
    state = torch.stack([log_u.detach().to(scale.dtype) for log_u in (log_u_image, log_u_text)], dim=1)
    found = surrogate(image, text, scale, state, gamma=gamma, eps=eps, tau_grad=tau_grad, group=group, backend=backend)
    log_u1, log_u2 = found.log_u.unbind(1)
    return found.loss, log_u1, log_u2


class Surrogate(NamedTuple):
    """`loss` is 0-D, with gradients; `log_u` [n, 2] are the new logarithms of this rank's normalisers, `samples` what
    every rank now knows of the whole batch, in global order [N].
    """

    loss: Tensor
    log_u: Tensor
    samples: Samples


def surrogate(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    log_u: Tensor,
    *,
    gamma: float,
    eps: float,
    tau_grad: str = "exact",
    tau_weighted: bool = False,
    ids: Tensor | None = None,
    image_keys: Tensor | None = None,
    payload: torch.dtype | None = None,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Surrogate:
    """`global_contrastive_loss` of checked arguments, with individual scales and all that a table of states needs.

    Args:
        scale: 0-D; or [n, 2], 1/τ of each image and each text anchor, constants here.
        log_u: [n, 2].
        tau_weighted: with individual scales, weigh every anchor by its τ, as RGCL prescribes.
        ids: int64 [n], to be sent along.
        image_keys: all ranks' image features, where they have been gathered already.
        payload: the type that features travel in, None for their own.
    """
    name = group_name(group)
    sent = torch.empty(image.shape[0], 0, dtype=torch.int64, device=image.device) if ids is None else ids.unsqueeze(1)
    loss, new, table, *_ = _global_contrastive(
        image,
        text,
        scale,
        log_u,
        sent,
        image.new_empty(0) if image_keys is None else image_keys,
        float(gamma),
        float(eps),
        tau_grad == "reference",
        tau_weighted,
        "" if payload is None else str(payload).removeprefix("torch."),
        wanted(image, text, scale),
        name,
        backend or "",
    )
    return Surrogate(shared(loss, name), new.detach(), Samples.of(table.detach(), individual=scale.dim() == 2))


@loss_op("global_contrastive")
def _global_contrastive(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    log_u: Tensor,
    ids: Tensor,
    image_keys: Tensor,
    gamma: float,
    eps: float,
    reference: bool,
    tau_weighted: bool,
    payload: str,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, this rank's new log u [n, 2], `Samples.gather`, unit gradients of image, text and scale)."""
    settings = ("global_contrastive_loss", gamma, eps, reference, tau_weighted, payload, scale.dim())
    layout = agree(image, group, *settings, wants=wants, backend=backend, least=2)
    keys = gather_keys(image, text, image_keys, layout, getattr(torch, payload) if payload else None)
    anchors = Anchors((image, text), keys, scale, layout, backend)
    positive = anchors.positives()
    log_sums, means = anchors.statistics()
    log_g = log_sums - scale * positive - math.log(layout.total - 1)
    new = _advance(log_u, log_g, gamma)
    # g / (u + ε) <= 1/γ, so this exponential cannot overflow.
    ratios = (log_g - log_plus(new, eps)).exp()
    slopes = torch.zeros_like(ratios) if means is None else ratios * (means - positive)
    table = Samples(
        log_u=new,
        positive=positive,
        share=(ratios / scale if tau_weighted else ratios).sum(1, keepdim=True),
        slopes=slopes.sum(1, keepdim=True) if anchors.common else slopes,
        scales=ratios[:, :0] if anchors.common else scale,
        ids=ids,
    ).gather(layout)
    everyone = Samples.of(table, individual=not anchors.common)
    loss = everyone.share.sum() / (2 * layout.total)
    if not any(layout.wants):
        return loss, new, table, *nothing(loss)
    # An anchor's derivative by its cosines is weight · s: a factor of all if s is common, one if the weight is 1/s.
    gains = None if anchors.common or tau_weighted else everyone.scales
    gradients = _gradients(anchors, everyone, ratios, gains, gamma=gamma, eps=eps, wants=wants)
    return loss, new, table, *gradients[:2], gradients[2] * (2 if reference else 1)


@_global_contrastive.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    log_u: Tensor,
    ids: Tensor,
    image_keys: Tensor,
    gamma: float,
    eps: float,
    reference: bool,
    tau_weighted: bool,
    payload: str,
    wants: Sequence[bool],
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    loss = image.new_empty((), dtype=accumulation(image))
    total = image.shape[0] if group == ALONE else torch.library.get_ctx().new_dynamic_size()
    columns = Samples.width(loss.dtype, individual=scale.dim() == 2, with_ids=ids.shape[1] > 0)
    return (
        loss,
        torch.empty_like(log_u),
        loss.new_empty(total, columns),
        *fake_gradients(wants, loss, image, text, scale),
    )


register_gradients(_global_contrastive, count=3)


def _gradients(
    anchors: Anchors,
    everyone: Samples,
    ratios: Tensor,
    gains: Tensor | None,
    *,
    gamma: float,
    eps: float,
    wants: Sequence[bool],
) -> Gradients:
    """Unit gradients of image, text and common scale.

    Args:
        ratios: g / (u + ε) of this rank's anchors [n, 2].
        gains: a further factor of each anchor's terms [N, 2].
    """
    layout, scale = anchors.layout, anchors.scale
    # A pair's term is at most (N-1)/γ times the largest gain: in such units it fits whatever a backend holds W in.
    largest = 1.0 if gains is None else gains.max()
    offsets = log_plus(everyone.log_u, eps) + math.log((layout.total - 1) / gamma)
    offsets += everyone.positive * (scale if anchors.common else everyone.scales)
    if gains is not None:
        offsets += (largest / gains).log()
        ratios = ratios * (gains[layout.mine] / largest)
    products = anchors.products(offsets, everyone.scales, -gamma * ratios.sum(1))
    loss_unit = 1 / (2 * layout.total)
    unit = loss_unit / gamma * largest
    if anchors.in_one_sweep:
        scale_grad = unit * Products(*products).along_scale(*anchors.towers, layout)
    else:
        scale_grad = loss_unit * everyone.slopes.sum()
    to_features = unit * layout.world_size * (scale if anchors.common else 1.0)
    towers = [None if product is None else product.mul_(to_features) for product in products]
    return only_wanted(wants, (*towers, scale_grad), like=scale_grad)


def _advance(log_u: Tensor, log_g: Tensor, gamma: float) -> Tensor:
    """log of (1-γ) u + γ g; log g on the first visit, and always when γ = 1."""
    if gamma == 1.0:
        return log_g
    moved = torch.logaddexp(log_u + math.log1p(-gamma), log_g + math.log(gamma))
    return torch.where(log_u.isneginf(), log_g, moved)


def log_plus(log_u: Tensor, eps: float) -> Tensor:
    """log(u + ε)."""
    if eps == 0.0:
        return log_u
    return torch.logaddexp(log_u, torch.full_like(log_u, math.log(eps)))
