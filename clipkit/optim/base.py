# SPDX-License-Identifier: Apache-2.0
"""What clipkit's optimizers share: the closure of a step, and bounds that hold in the master weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor, nn


class Optimizer(torch.optim.Optimizer):
    """An optimizer that says in `_update` what one step does."""

    @abstractmethod
    def _update(self) -> None:
        """Update every parameter that has a gradient. Called without gradients being recorded."""

    def weights_of(self, parameter: nn.Parameter) -> Tensor:
        """What a step updates: a 16-bit parameter's fp32 master once it has one, otherwise the parameter itself."""
        master: Tensor | None = self.state.get(parameter, {}).get("master")
        return parameter if master is None else master

    @torch.no_grad()
    def clamp_(self, parameter: nn.Parameter, low: float, high: float) -> None:
        """Keep a parameter's numbers in [low, high], as CLIP does with the log of its scale in [0, ln 100].

        The master weights are what is bounded, and a 16-bit parameter becomes their rounded copy again. Bounds on the
        parameter alone would last until the next step, which goes on from a master that has drifted beyond them.
        """
        weights = self.weights_of(parameter).clamp_(low, high)
        if weights is not parameter:
            parameter.copy_(weights)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient. Returns what `closure`, if any, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss
