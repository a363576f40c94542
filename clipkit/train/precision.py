# SPDX-License-Identifier: Apache-2.0
"""fp32, fp64, and 16-bit autocast with fp16's loss scaling."""

from __future__ import annotations

import contextlib

import torch

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def emulated_on_cpu(low_dtype: torch.dtype) -> bool:
    """Whether oneDNN refuses 16-bit products on this processor (x86 without AVX-512, say): torch's are then plain
    loops, those of a backward on one thread. False where torch has no oneDNN to ask.
    """
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    ask = getattr(torch.ops.mkldnn, supported[low_dtype], None) if torch.backends.mkldnn.is_available() else None
    return ask is not None and not ask()


class Precision:
    """How the encoders compute. Weights, optimizer state and losses stay in fp32 (fp64 for `fp64`)."""

    def __init__(self, name: str, device_type: str, *, autocast: bool = True) -> None:
        """`autocast=False`: somebody else casts (FSDP2's own mixed precision)."""
        self.low_dtype = LOW.get(name)
        self.weight_dtype = torch.float64 if name == "fp64" else torch.float32
        self._device_type, self._autocast = device_type, autocast and self.low_dtype is not None
        self.scaler = torch.amp.GradScaler(device_type, enabled=name == "fp16")

    def encoding(self) -> contextlib.AbstractContextManager[object]:
        """The context that encoders run in."""
        if not self._autocast:
            return contextlib.nullcontext()
        return torch.autocast(self._device_type, dtype=self.low_dtype)
