# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.lamb` in plain torch: many tensors in one call of each operation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clipkit.engine.lamb import LambTensors

_SETTLED = 1e30
"""A number of steps after which a moving average needs no correction: beta^1e30 is 0."""


def lamb(tensors: LambTensors) -> tuple[Tensor, Callable[[Tensor], None]]:
    """See `clipkit.engine.lamb.lamb`."""
    updates = _directions(tensors)
    for decay in {*tensors.decays} - {0.0}:
        decayed = [index for index, one in enumerate(tensors.decays) if one == decay]
        weights = [tensors.weights[index] for index in decayed]
        torch._foreach_add_([updates[index] for index in decayed], weights, alpha=decay)
    squares = [torch.stack(torch._foreach_norm(each)).square() for each in (tensors.weights, updates)]

    def apply(norms: Tensor) -> None:
        factors = _rate_factors(tensors)
        if tensors.skip is not None:
            factors.masked_fill_(tensors.skip != 0, 0.0)
        rates = [
            factor * ratio * rate
            for factor, ratio, rate in zip(factors.unbind(), _trust_ratios(tensors, norms), tensors.rates, strict=True)
        ]
        torch._foreach_mul_(updates, rates)
        torch._foreach_sub_(tensors.weights, updates)
        if tensors.copies is not None:
            torch._foreach_copy_(tensors.copies, tensors.weights)

    return torch.stack(squares, dim=1), apply


def _directions(tensors: LambTensors) -> list[Tensor]:
    """Adam's direction, and the moments advanced: what torch's fused AdamW makes of weights of zero at rate -1. One
    pass over memory instead of ten; a step to be skipped leaves the moments as they are, bit by bit."""
    # the fused pass reads elements in the order of memory: a gradient laid out in another way is laid out anew
    gradients = [
        gradient.to(mean.dtype) if gradient.stride() == mean.stride() else torch.empty_like(mean).copy_(gradient)
        for gradient, mean in zip(tensors.gradients, tensors.means, strict=True)
    ]
    if tensors.multiply is not None:
        gradients = [gradient * tensors.multiply for gradient in gradients]
    directions = [torch.zeros_like(mean) for mean in tensors.means]
    corrected = tensors.trust != "deepspeed"
    torch._fused_adamw_(
        directions,
        gradients,
        tensors.means,
        tensors.variances,
        [],
        tensors.steps if corrected else [torch.full_like(step, _SETTLED) for step in tensors.steps],
        lr=-1.0,
        beta1=tensors.betas[0],
        beta2=tensors.betas[1],
        weight_decay=0.0,
        eps=tensors.eps,
        amsgrad=False,
        maximize=False,
        found_inf=tensors.skip,
    )
    return directions


def _rate_factors(tensors: LambTensors) -> Tensor:
    """What DeepSpeed's bias correction makes of the rates [tensors]; the other rules correct the moments."""
    # Before the first step that counts, the number is 0 and the moments are too: any correction will do.
    steps = torch.stack([step.reshape(()) for step in tensors.steps]).to(tensors.weights[0].dtype).clamp_min(1.0)
    if tensors.trust != "deepspeed":
        return torch.ones_like(steps)
    mean, variance = (1 - beta**steps for beta in tensors.betas)
    return variance.sqrt() / mean


def _trust_ratios(tensors: LambTensors, norms: Tensor) -> list[Tensor]:
    weight, update = norms.sqrt().unbind(dim=1)
    ratios = weight / update
    if tensors.trust == "deepspeed":
        ratios = ratios.clamp(0.01, 10.0)
    ratios = torch.where((weight == 0) | (update == 0), 1.0, ratios)
    one = torch.ones_like(ratios[0])
    unscaled = [tensors.trust == "nvlamb" and decay == 0 for decay in tensors.decays]
    return [one if alone else ratio for alone, ratio in zip(unscaled, ratios.unbind(), strict=True)]
