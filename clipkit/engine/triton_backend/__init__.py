# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: kernels/ behind the engine's interface. The first sweep that runs imports triton."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from clipkit.engine.triton_backend.detached import softmax_sweep
from clipkit.engine.triton_backend.exponential import anchor_statistics, exponential_products, log_sum_exps
from clipkit.engine.triton_backend.norms import (
    add_norm,
    add_post_norm,
    norm_gradients,
    swiglu_norm,
    swiglu_norm_gradients,
)
from clipkit.engine.triton_backend.rotation import rotate
from clipkit.engine.triton_backend.second_order import curvature_products, curvature_sums
from clipkit.engine.triton_backend.sigmoid import labelled_sigmoid_sweep, sigmoid_sweep
from clipkit.engine.triton_backend.two_forms import pair_divergence

__all__ = [
    "SWEEPS",
    "add_norm",
    "add_post_norm",
    "anchor_statistics",
    "curvature_products",
    "curvature_sums",
    "exponential_products",
    "labelled_sigmoid_sweep",
    "log_sum_exps",
    "norm_gradients",
    "obstacle",
    "pair_divergence",
    "rotate",
    "sigmoid_sweep",
    "softmax_sweep",
    "swiglu_norm",
    "swiglu_norm_gradients",
]

SWEEPS = tuple(name for name in __all__ if name not in ("SWEEPS", "obstacle"))


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
