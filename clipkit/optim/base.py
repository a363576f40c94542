# SPDX-License-Identifier: Apache-2.0
"""What clipkit's optimizers share: the closure of a step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import overload

import torch


class Optimizer(torch.optim.Optimizer):
    """An optimizer that says in `_update` what one step does."""

    @abstractmethod
    def _update(self) -> None:
        """Update every parameter that has a gradient. Called without gradients being recorded."""

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
