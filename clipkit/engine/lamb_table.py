# SPDX-License-Identifier: Apache-2.0
"""The table of tensors that compiled LAMB reads, in the layout of struct LambTensor (csrc/lamb_rule.h)."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from clipkit.engine.lamb import LambTensors

_RATE = 14  # of the sixteen fp32 words of a tensor's entry


def lamb_table(tensors: LambTensors, device: torch.device) -> Tensor:
    """Eight 64-bit words a tensor, [tensors, 8] int64; to a card from pinned memory, which waits for nothing."""
    columns = (tensors.weights, tensors.gradients, tensors.means, tensors.variances, tensors.copies, tensors.steps)
    pointers = [
        [0] * len(tensors.weights) if column is None else [tensor.data_ptr() for tensor in column] for column in columns
    ]
    counts = [weight.numel() for weight in tensors.weights]
    on_host = [0.0 if isinstance(rate, Tensor) else rate for rate in tensors.rates]
    rates = [struct.unpack("=q", struct.pack("=ff", *pair))[0] for pair in zip(on_host, tensors.decays, strict=True)]
    table = torch.tensor([*pointers, counts, rates], dtype=torch.int64).T.contiguous()
    if device.type != "cpu":
        table = table.pin_memory().to(device, non_blocking=True)
    for tensor, rate in enumerate(tensors.rates):
        if isinstance(rate, Tensor):
            table.view(torch.float32)[tensor, _RATE].copy_(rate.reshape(()))
    return table
