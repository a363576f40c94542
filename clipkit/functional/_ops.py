# SPDX-License-Identifier: Apache-2.0
"""How a loss becomes an operator: registered with torch.library, so that torch.compile sees one node and no graph
break.

An operator makes its gradients in the forward, for an incoming gradient of one, and the backward only multiplies and
casts. The sweeps are the same ones in the same number; but all that crosses ranks does so in the forward, so no rank
can be left waiting in a backward, and what is kept between the two is this rank's gradients, never a gathered tower.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from clipkit.engine.precision import row_chunks
from clipkit.parallel import ALONE

Gradients = tuple[Tensor, Tensor, Tensor]
"""Of the first three inputs of an operator, as its last outputs: for an incoming gradient of one, in the accumulation
type, empty where this rank does not want it.
"""


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


def wanted(*inputs: Tensor) -> list[bool]:
    """For each input of an operator, whether its gradient will be asked for."""
    return [torch.is_grad_enabled() and value.requires_grad for value in inputs]


def only_if(want: bool, gradient: Tensor | None, like: Tensor) -> Tensor:
    """`gradient`, or an empty tensor where this rank does not want it: operators return tensors, not None."""
    return gradient if want and gradient is not None else like.new_empty(0)


def only_wanted(wants: Sequence[bool], gradients: Sequence[Tensor | None], like: Tensor) -> Gradients:
    """`only_if` for three of them."""
    first, second, third = (only_if(*each, like) for each in zip(wants, gradients, strict=True))
    return first, second, third


def nothing(like: Tensor) -> Gradients:
    """Three gradients when no rank wants any."""
    return only_wanted((False, False, False), (None, None, None), like)


def fake_gradient(want: bool, value: Tensor, loss: Tensor) -> Tensor:
    """The shape of `only_if` for the gradient of `value`, accumulated in the type of `loss`."""
    return only_if(want, torch.empty_like(value, dtype=loss.dtype), loss)


def fake_gradients(wants: Sequence[bool], loss: Tensor, *inputs: Tensor) -> Gradients:
    """`fake_gradient` for three of them."""
    return only_wanted(wants, [torch.empty_like(value, dtype=loss.dtype) for value in inputs], loss)


def register_gradients(operator: CustomOpDef, *, count: int) -> None:
    """Autograd for an operator whose first output is its loss, and whose last `count` are its first inputs' gradients
    (`Gradients`). Outputs in between are results without a derivative.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[-count:])
        ctx.dtypes = [value.dtype for value in inputs[:count]]
        ctx.others = len(inputs) - count
        ctx.set_materialize_grads(False)  # zeros for the outputs that no one differentiates would be two towers of fp32

    def backward(ctx: Any, grad: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients = [
            _once(_times(saved, grad, dtype)) if want and grad is not None else None
            for saved, dtype, want in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False)
        ]
        return (*gradients, *[None] * ctx.others)

    operator.register_autograd(backward, setup_context=setup_context)


def _times(saved: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """saved · grad, rounded once to `dtype`; without the product's own copy in fp32 where it is [n, d]."""
    if saved.dtype == dtype or saved.dim() != 2 or torch.compiler.is_compiling():
        return (saved * grad).to(dtype)
    product = torch.empty_like(saved, dtype=dtype)
    for rows in row_chunks(saved):
        product[rows] = saved[rows] * grad
    return product


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


_ROOT = torch.zeros((), requires_grad=True, device="cpu")


class _Rooted(torch.autograd.Function):
    """The identity, with a place in a graph that leads nowhere: nothing receives a gradient."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, root: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


def shared(loss: Tensor, group: str) -> Tensor:
    """The loss of a batch that ranks share: one may call backward on it on every rank.

    Also on a rank that trains nothing itself (no rows, frozen towers), where autograd would refuse while the others
    walk on into the collectives of DDP or FSDP.
    """
    if group == ALONE or loss.requires_grad or not torch.is_grad_enabled():
        return loss
    return _Rooted.apply(loss, _ROOT)
