# SPDX-License-Identifier: Apache-2.0
"""The backend in plain torch: chunked, any device, float64-capable. The oracle that users can read, and the fallback
that works.
"""

from __future__ import annotations

import torch

from clipkit.engine.torch_backend.detached import softmax_sweep
from clipkit.engine.torch_backend.exponential import anchor_statistics, exponential_products, log_sum_exps
from clipkit.engine.torch_backend.lamb import lamb
from clipkit.engine.torch_backend.norms import (
    add_norm,
    add_post_norm,
    norm_gradients,
    swiglu_norm,
    swiglu_norm_gradients,
)
from clipkit.engine.torch_backend.rotation import rotate
from clipkit.engine.torch_backend.sample_state import advance_state, gather_state, scatter_state
from clipkit.engine.torch_backend.second_order import curvature_products, curvature_sums
from clipkit.engine.torch_backend.sigmoid import labelled_sigmoid_sweep, sigmoid_sweep
from clipkit.engine.torch_backend.two_forms import pair_divergence

__all__ = [
    "SWEEPS",
    "add_norm",
    "add_post_norm",
    "advance_state",
    "anchor_statistics",
    "curvature_products",
    "curvature_sums",
    "exponential_products",
    "gather_state",
    "labelled_sigmoid_sweep",
    "lamb",
    "log_sum_exps",
    "norm_gradients",
    "obstacle",
    "pair_divergence",
    "rotate",
    "scatter_state",
    "sigmoid_sweep",
    "softmax_sweep",
    "swiglu_norm",
    "swiglu_norm_gradients",
]

SWEEPS = tuple(name for name in __all__ if name not in ("SWEEPS", "obstacle"))


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve such tensors; it serves all."""
    return None
