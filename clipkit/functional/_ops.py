# SPDX-License-Identifier: Apache-2.0
"""How a loss becomes an operator: registered with torch.library, so that torch.compile sees one node and no graph
break.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef


def loss_op(name: str) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Register a function as the operator clipkit::`name`.

    Inside it autocast is off: a mixed-precision region would otherwise cast the fp32 operands of the engine to 16 bit
    and round the logits. (Autocast falls through to a custom operator and would still be on within.)
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


def register_unit_gradients(operator: CustomOpDef) -> None:
    """Autograd for an operator whose first output is its loss and whose others are the gradients of its first inputs.

    Losses that need no statistics make their gradients in the forward sweep, in the accumulation type and for an
    incoming gradient of one; the backward only multiplies and casts.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[1:])
        ctx.dtypes = [value.dtype for value in inputs[: len(output) - 1]]
        ctx.others = len(inputs) - len(ctx.dtypes)

    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        gradients = [
            _once((saved * grad).to(dtype)) if want else None
            for saved, dtype, want in zip(ctx.saved_tensors, ctx.dtypes, wanted, strict=False)
        ]
        return (*gradients, *[None] * ctx.others)

    operator.register_autograd(backward, setup_context=setup_context)


class _Once(torch.autograd.Function):
    """The identity. A gradient that passed through it cannot be differentiated again, instead of silently as a
    constant.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            "backward: got a second derivative of a clipkit loss; want a first one, the only one with a closed form "
            "here; leave the loss out of what create_graph=True differentiates, or write it in plain torch"
        )


def _once(gradient: Tensor) -> Tensor:
    return _Once.apply(gradient) if torch.is_grad_enabled() else gradient


def only_if(want: bool, gradient: Tensor) -> Tensor:
    """`gradient`, or an empty tensor in the place of one that was made because another rank wants its own."""
    return gradient if want else nothing(gradient)


def wants_gradient(*values: Tensor) -> bool:
    """Whether a gradient of any of these will be asked for."""
    return torch.is_grad_enabled() and any(value.requires_grad for value in values)


def register_closed_form(forward: CustomOpDef, backward: CustomOpDef, *, tensors: int) -> None:
    """Autograd for a loss whose gradient needs the forward's statistics, by an operator of its own.

    `forward` takes `tensors` tensors, then plain options, and returns (loss, residuals ...). `backward` takes the
    incoming gradient, the options, the tensors and the residuals, and returns a gradient for each of the first of these
    tensors, in the accumulation type (empty where not wanted).
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:tensors], *output[1:])
        ctx.options = inputs[tensors:]

    def run_backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        gradients = backward(grad, *ctx.options, *ctx.saved_tensors)
        kept = [
            _once(gradient.to(value.dtype)) if want else None
            for gradient, value, want in zip(gradients, ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        ]
        return (*kept, *[None] * (tensors - len(kept) + len(ctx.options)))

    forward.register_autograd(run_backward, setup_context=setup_context)
