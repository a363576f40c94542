# SPDX-License-Identifier: Apache-2.0
"""How a loss becomes an operator: registered with torch.library, so that torch.compile sees one node and no graph break."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef


def loss_op(name: str) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Register a function as the operator clipkit::`name`.

    Inside it autocast is off: a mixed-precision region would otherwise cast the fp32 operands of the engine to 16 bit and round
    the logits. (Autocast falls through to a custom operator and would still be on within.)
    """

    def register(function: Callable[..., Any]) -> CustomOpDef:
        @functools.wraps(function)
        def without_autocast(*arguments: Any, **options: Any) -> Any:
            device = next(a for a in arguments if isinstance(a, Tensor)).device.type
            with torch.autocast(device, enabled=False):
                return function(*arguments, **options)

        return torch.library.custom_op(f"clipkit::{name}", without_autocast, mutates_args=())

    return register


def nothing(like: Tensor) -> Tensor:
    """An empty tensor, for the outputs of an operator that were not asked for."""
    return like.new_empty(0)


def or_nothing(value: Tensor | None, like: Tensor) -> Tensor:
    """`value`, or an empty tensor in its place: operators return tensors, not None."""
    return nothing(like) if value is None else value


def accumulation(like: Tensor) -> torch.dtype:
    """The type of statistics, losses and saved gradients: float64 for float64, else float32."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32
