# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: kernels/ behind the engine's interface. So far the forward statistics."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

SWEEPS = ("log_sum_exps",)


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve such tensors here, or None."""
    if dtype == torch.float64:
        return "its kernels accumulate in fp32"
    if not _installed():
        return "triton is not installed"
    if device.type == "cuda":
        return None
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "it needs a CUDA device (or TRITON_INTERPRET=1, a slow simulation)"
    return "the interpreter computes bfloat16 wrongly" if dtype == torch.bfloat16 else None


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def log_sum_exps(x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.log_sum_exps`."""
    from clipkit.kernels.row_col_lse import row_col_lse

    return row_col_lse(x, y, scale, diagonal=diagonal)
