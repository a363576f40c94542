# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation whose running statistics survive 16-bit weights, replayed passes and pictures that come alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, its names and values, with two differences where that one fails.

    * Weight and bias may be narrower than the running statistics (bf16 weights, FSDP2's param_dtype); they are widened.
    * In training, a channel that holds fewer than two values (one picture with a 1 x 1 map, or none at all, after
      broken samples) comes out as the bias, for its variance is zero, and leaves the running statistics alone.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] -> the same, in x's dtype."""
        weight, bias = self.weight.to(self.running_var.dtype), self.bias.to(self.running_var.dtype)
        if self.training:
            self.num_batches_tracked.add_(1)
            if x.numel() <= x.shape[1]:
                deviation = x - x  # zero, with a zero gradient; NaN stays
                return (deviation * weight[:, None, None] + bias[:, None, None]).to(x.dtype)
        momentum = self.momentum or 0.0
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, self.training, momentum, self.eps)


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The running means and variances inside `module`, also of PyTorch's own BatchNorm classes."""
    return [value for value in _buffers(module) if value.is_floating_point()]


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Passes inside normalise by the batch as ever; afterwards the running statistics of `module` are as before.

    For a pass that repeats another one: the second encoding of GradCache, recomputed blocks. Saved and written back,
    because activation checkpointing wants a recomputed pass to save the very tensors of the first one.
    """
    live = [value.data for value in _buffers(module)]  # .data: autograd may have saved them, in vain
    before = [value.clone() for value in live]
    try:
        yield
    finally:
        if live:
            torch._foreach_copy_(live, before)


def _buffers(module: nn.Module) -> list[Tensor]:
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    return [value for norm in norms for value in norm.buffers(recurse=False)]
