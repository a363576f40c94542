# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.lamb` in plain torch: many tensors in one call of each operation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clipkit.engine.lamb import LambTensors


def lamb(tensors: LambTensors) -> tuple[Tensor, Callable[[Tensor], None]]:
    """See `clipkit.engine.lamb.lamb`."""
    _advance_moments(tensors)
    updates, rate_factors = _updates(tensors)
    squares = [torch.stack(torch._foreach_norm(each)).square() for each in (tensors.weights, updates)]

    def apply(norms: Tensor) -> None:
        if tensors.skip is not None:
            rate_factors.masked_fill_(tensors.skip != 0, 0.0)
        rates = [
            factor * ratio * rate
            for factor, ratio, rate in zip(
                rate_factors.unbind(), _trust_ratios(tensors, norms), tensors.rates, strict=True
            )
        ]
        torch._foreach_mul_(updates, rates)
        torch._foreach_sub_(tensors.weights, updates)
        if tensors.copies is not None:
            torch._foreach_copy_(tensors.copies, tensors.weights)

    return torch.stack(squares, dim=1), apply


def _advance_moments(tensors: LambTensors) -> None:
    gradients = [gradient.to(tensors.means[0].dtype) for gradient in tensors.gradients]
    if tensors.multiply is not None:
        gradients = [gradient * tensors.multiply for gradient in gradients]
    beta1, beta2 = tensors.betas
    keep1: float | Tensor = beta1
    keep2: float | Tensor = beta2
    if tensors.skip is not None:
        # A step without gradient that forgets nothing: the moments stay as they are, bit by bit.
        counts = tensors.skip.reshape(()) == 0
        gradients = [torch.where(counts, gradient, 0.0) for gradient in gradients]
        one = torch.ones((), dtype=tensors.means[0].dtype, device=counts.device)
        keep1, keep2 = torch.where(counts, one * beta1, one), torch.where(counts, one * beta2, one)
    torch._foreach_mul_(tensors.means, keep1)
    torch._foreach_add_(tensors.means, gradients, alpha=1 - beta1)
    torch._foreach_mul_(tensors.variances, keep2)
    torch._foreach_addcmul_(tensors.variances, gradients, gradients, value=1 - beta2)


def _updates(tensors: LambTensors) -> tuple[list[Tensor], Tensor]:
    """Each tensor's direction with its weight decay, and what its bias correction makes of the rate [tensors]."""
    # Before the first step that counts, the number is 0 and the moments are too: any correction will do.
    steps = torch.stack([step.reshape(()) for step in tensors.steps]).to(tensors.weights[0].dtype).clamp_min(1.0)
    mean, variance = (1 - beta**steps for beta in tensors.betas)
    updates = [moment.clone() for moment in tensors.means]  # torch 2.9 has no _foreach_clone
    deviations: list[Tensor] = list(torch._foreach_sqrt(tensors.variances))
    if tensors.trust == "deepspeed":
        rate_factors = variance.sqrt() / mean
    else:
        rate_factors = torch.ones_like(mean)
        torch._foreach_div_(updates, list(mean.unbind()))
        torch._foreach_div_(deviations, list(variance.sqrt().unbind()))
    torch._foreach_add_(deviations, tensors.eps)
    torch._foreach_div_(updates, deviations)
    torch._foreach_add_(updates, torch._foreach_mul(tensors.weights, tensors.decays))
    return updates, rate_factors


def _trust_ratios(tensors: LambTensors, norms: Tensor) -> list[Tensor]:
    weight, update = norms.sqrt().unbind(dim=1)
    ratios = weight / update
    if tensors.trust == "deepspeed":
        ratios = ratios.clamp(0.01, 10.0)
    ratios = torch.where((weight == 0) | (update == 0), 1.0, ratios)
    one = torch.ones_like(ratios[0])
    unscaled = [tensors.trust == "nvlamb" and decay == 0 for decay in tensors.decays]
    return [one if alone else ratio for alone, ratio in zip(unscaled, ratios.unbind(), strict=True)]
