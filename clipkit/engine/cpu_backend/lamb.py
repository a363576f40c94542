# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.lamb` by csrc/cpu/lamb.h: two passes over memory where plain torch makes seven."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from clipkit.engine import torch_backend
from clipkit.engine.cpu_backend.compiled import compiled
from clipkit.engine.lamb import TRUST_RULES, LambTensors
from clipkit.engine.lamb_table import lamb_table


def lamb(tensors: LambTensors) -> tuple[Tensor, Callable[[Tensor], None]]:
    """See `clipkit.engine.lamb.lamb`. Tensors with gaps in memory are left to plain torch."""
    if not all(map(_same_elements_in_order, *_in_place(tensors))):
        return torch_backend.lamb(tensors)
    laid_out = tensors._replace(gradients=list(map(_laid_out_as, tensors.gradients, tensors.means)))
    table = lamb_table(laid_out, torch.device("cpu"))
    norms = torch.zeros((len(table), 2), dtype=torch.float32)

    def run(phase: int, norms: Tensor) -> None:
        compiled().cpu_lamb(
            phase,
            str(laid_out.gradients[0].dtype).removeprefix("torch."),
            table.data_ptr(),
            len(table),
            norms.data_ptr(),
            0 if tensors.skip is None else tensors.skip.data_ptr(),
            0 if tensors.multiply is None else tensors.multiply.data_ptr(),
            *tensors.betas,
            tensors.eps,
            TRUST_RULES.index(tensors.trust),
            torch.get_num_threads(),
        )

    def apply(norms: Tensor) -> None:
        assert norms.is_contiguous()
        assert norms.dtype == torch.float32
        run(2, norms)

    run(1, norms)
    return norms, apply


def _in_place(tensors: LambTensors) -> Iterable[list[Tensor]]:
    """What is updated where it lies, list by list."""
    lists = [tensors.weights, tensors.means, tensors.variances]
    return lists if tensors.copies is None else [*lists, tensors.copies]


def _laid_out_as(gradient: Tensor, like: Tensor) -> Tensor:
    if gradient.stride() == like.stride():
        return gradient
    return torch.empty_like(like, dtype=gradient.dtype).copy_(gradient)


def _same_elements_in_order(first: Tensor, *others: Tensor) -> bool:
    """Whether a walk over memory, whatever the order of the dimensions, meets all tensors' elements side by side."""
    if any(other.stride() != first.stride() for other in others):
        return False
    if first.is_contiguous():
        return True
    outermost_first = sorted(range(first.ndim), key=lambda dim: (first.stride(dim), first.shape[dim]), reverse=True)
    return first.permute(outermost_first).is_contiguous()
