# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.lamb` by csrc/cuda/lamb.h: three launches for all tensors of a gradient type."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.engine.cuda_backend.library import check_tensor, native, stream_for
from clipkit.engine.lamb import TRUST_RULES, LambTensors
from clipkit.engine.lamb_table import lamb_table


class _Plan(NamedTuple):
    """How tensors of given sizes are cut into chunks, on the device: (tensor, number) [chunks, 2] int32, each tensor's
    first chunk [tensors + 1] int32."""

    chunks: Tensor
    first_chunk: Tensor


def lamb(tensors: LambTensors) -> tuple[Tensor, Callable[[Tensor], None]]:
    """See `clipkit.engine.lamb.lamb`."""
    _check(tensors)
    like = tensors.weights[0]
    plan = _plan(tuple(weight.numel() for weight in tensors.weights), like.device)
    table = lamb_table(tensors, like.device)
    partials = torch.empty(plan.chunks.shape, dtype=torch.float32, device=like.device)
    norms = torch.empty((len(tensors.weights), 2), dtype=torch.float32, device=like.device)

    def run(phase: int, norms: Tensor) -> None:
        with stream_for(like) as stream:
            native().lamb(
                phase,
                str(tensors.gradients[0].dtype).removeprefix("torch."),
                table.data_ptr(),
                len(table),
                plan.chunks.data_ptr(),
                plan.first_chunk.data_ptr(),
                len(plan.chunks),
                partials.data_ptr(),
                norms.data_ptr(),
                0 if tensors.skip is None else tensors.skip.data_ptr(),
                0 if tensors.multiply is None else tensors.multiply.data_ptr(),
                *tensors.betas,
                tensors.eps,
                TRUST_RULES.index(tensors.trust),
                stream,
            )

    def apply(norms: Tensor) -> None:
        check_tensor("norms", norms, like, dtype=torch.float32, shape=(len(tensors.weights), 2))
        run(2, norms)

    run(1, norms)
    return norms, apply


def _check(tensors: LambTensors) -> None:
    like, gradient_type = tensors.weights[0], tensors.gradients[0].dtype
    for switch in (tensors.skip, tensors.multiply):
        if switch is not None:
            check_tensor("skip, multiply", switch.reshape(1), like, dtype=torch.float32, shape=(1,))
    for index, weight in enumerate(tensors.weights):
        shape = tuple(weight.shape)
        for each in (weight, tensors.means[index], tensors.variances[index]):
            check_tensor("weights and moments", each, like, dtype=torch.float32, shape=shape)
        check_tensor("steps", tensors.steps[index].reshape(1), like, dtype=torch.float32, shape=(1,))
        check_tensor("gradients", tensors.gradients[index], like, dtype=gradient_type, shape=shape)
        if tensors.copies is not None:
            check_tensor("copies", tensors.copies[index], like, dtype=gradient_type, shape=shape)


@functools.lru_cache(maxsize=64)
def _plan(counts: tuple[int, ...], device: torch.device) -> _Plan:
    size = native().lamb_chunk_elements
    chunks, first_chunk = [], [0]
    for tensor, count in enumerate(counts):
        chunks += [(tensor, number) for number in range(-(-count // size))]
        first_chunk.append(len(chunks))
    pairs = torch.tensor(chunks, dtype=torch.int32).reshape(-1, 2)
    return _Plan(pairs.to(device), torch.tensor(first_chunk, dtype=torch.int32).to(device))
