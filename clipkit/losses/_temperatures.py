# SPDX-License-Identifier: Apache-2.0
"""Individual temperatures (RGCL): one for each sample and side, moved by their own Adam on a closed-form gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clipkit.errors import value_error
from clipkit.functional._checks import check_choice, check_fraction
from clipkit.functional._samples import Samples
from clipkit.functional.global_contrastive import log_plus

AdamRule = Literal["exact", "reference", "unrooted"]


@dataclass(frozen=True)
class TemperatureRule:
    """How a sample's two temperatures follow ∂/∂τ of τ [log(ε + g) + ρ].

    Attributes:
        start, low, high: where temperatures begin, and their bounds.
        rate, betas, eps: Adam's. One visit an epoch is assumed: the epoch counts its steps.
        most: gradients are clamped to ± this.
        adam: "exact" is Adam. "reference" is what the published code does: no averaging in the first epoch, whose
            moments then enter the second epoch's bias correction as if they were averages. "unrooted" is the same
            divided by v instead of its root, as that code was when its README's rate 0.0133 was written.
    """

    start: float = 0.03
    low: float = 0.01
    high: float = 1.0
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    most: float = 5.0
    adam: AdamRule = "exact"

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.start <= self.high:
            raise value_error(
                "temperature",
                got=f"{self.start} within [{self.low}, {self.high}]",
                want="0 < tau_min <= temperature <= tau_max",
                fix="correct temperature, tau_min or tau_max",
            )
        check_choice("tau_adam", self.adam, ("exact", "reference", "unrooted"))
        check_fraction("tau_lr", self.rate, low=0.0, high=math.inf)
        check_fraction("tau_eps", self.eps, low=0.0, high=math.inf, low_open=True)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise value_error(
                "tau_betas", got=self.betas, want="two numbers in [0, 1)", fix="leave it out for (0.9, 0.999)"
            )

    @property
    def initial(self) -> list[float]:
        """What the columns of a table start with."""
        return [self.start] * 2 + [0.0] * 4

    def gradient(self, samples: Samples, eps: float, rho: float) -> Tensor:
        """∂/∂τ of each sample and side [N, 2]: ρ + log(u + ε) - s ∂(g / (u + ε))/∂s, s = 1/τ.

        With γ = 1 and ε = 0 it is ρ less the KL divergence of the softmax over negatives from the uniform one.
        """
        gradient = rho + log_plus(samples.log_u, eps) - samples.scales * samples.slopes
        return gradient.clamp(-self.most, self.most)

    def advance(self, rows: Tensor, gradient: Tensor, epoch: int) -> Tensor:
        """The columns [N, 6] after a step along `gradient` [N, 2]."""
        tau, first, second = rows.split(2, dim=1)
        seeding = self.adam != "exact" and epoch == 0
        beta1, beta2 = (0.0, 0.0) if seeding else self.betas
        first = first.lerp(gradient, 1 - beta1)
        second = second.lerp(gradient.square(), 1 - beta2)
        unbiased1, unbiased2 = first / (1 - beta1 ** (epoch + 1)), second / (1 - beta2 ** (epoch + 1))
        spread = unbiased2 if self.adam == "unrooted" else unbiased2.sqrt()
        tau = (tau - self.rate * unbiased1 / (spread + self.eps)).clamp(self.low, self.high)
        return torch.cat([tau, first, second], dim=1)
