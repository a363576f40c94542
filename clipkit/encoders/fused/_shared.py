# SPDX-License-Identifier: Apache-2.0
"""What the operators have in common: who runs them, and what they refuse."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine import dispatch
from clipkit.engine.precision import FLOATS
from clipkit.errors import type_error, value_error


def for_the_compiler(sweep: str, like: Tensor, backend: str | None) -> bool:
    """Whether torch.compile is looking and plain torch would run the operator: then it had better see the formula.

    Inductor fuses what it sees with what surrounds it, and an operator is a closed box to it.
    """
    return torch.compiler.is_compiling() and _chosen(sweep, like.device, like.dtype, backend or "") == "torch"


@torch.compiler.assume_constant_result
def _chosen(sweep: str, device: torch.device, dtype: torch.dtype, backend: str) -> str:
    """Asked while compiling, not traced: a compiled graph stays with the backend that it was compiled for."""
    return dispatch.chosen(sweep, device, dtype, backend)


def as_rows(tensor: Tensor) -> Tensor:
    """[..., width] as [rows, width]; a view wherever the leading dimensions have one stride, as chunks of one GEMM's
    output do.
    """
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def check_float(argument: str, tensor: Tensor) -> None:
    """Refuse what has no gradient."""
    if tensor.dtype not in FLOATS:
        want = "float64, float32, bfloat16 or float16"
        raise type_error(argument, got=tensor.dtype, want=want, fix="convert it")


def check_like(argument: str, tensor: Tensor, other: str, model: Tensor) -> None:
    """Refuse another shape, dtype or device than `model` has."""
    mine, theirs = ((tuple(t.shape), t.dtype, t.device) for t in (tensor, model))
    if mine != theirs:
        raise value_error(argument, got=_kind(tensor), want=f"{_kind(model)}, as {other}", fix="make them alike")


def check_branch(x: Tensor, branch: Tensor) -> None:
    """A branch has its residual stream's shape and device, and its dtype or 16 bit where that is fp32."""
    check_float("x", x)
    check_float("branch", branch)
    if branch.shape != x.shape or branch.device != x.device:
        raise value_error("branch", got=_kind(branch), want=f"{_kind(x)}, as x", fix="make them alike")
    narrower = x.dtype == torch.float32 and branch.dtype in (torch.bfloat16, torch.float16)
    if branch.dtype != x.dtype and not narrower:
        want = f"{x.dtype}, as x, or 16 bit beside an x of float32"
        raise type_error("branch", got=branch.dtype, want=want, fix="convert one of them")


def check_affine(weight: Tensor, bias: Tensor, x: Tensor, least: int) -> None:
    """Weight and bias of a norm are float vectors of one size, from `least` to the width of the rows x."""
    width = x.shape[-1] if x.ndim else 0
    for argument, vector in (("weight", weight), ("bias", bias)):
        check_float(argument, vector)
        fits = vector.ndim == 1 and least <= vector.shape[0] <= width and vector.shape == weight.shape
        if not fits or vector.device != x.device:
            size = f"[{width}]" if least == width else f"[hidden], the same for both, hidden from {least} to {width}"
            fix = "take those of the norm of these rows"
            raise value_error(argument, got=_kind(vector), want=f"{size} on {x.device}", fix=fix)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
