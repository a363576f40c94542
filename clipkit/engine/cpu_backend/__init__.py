# SPDX-License-Identifier: Apache-2.0
"""The compiled CPU backend: products of a cache-sized tile, then one fused C++ pass over it (csrc/cpu/tile.h).

A pass makes row and column statistics from one exponential per logit, or the weights of the gradient in place, where
plain torch streams the tile through memory for each operation. LAMB makes two passes over an optimizer's tensors.
"""

from __future__ import annotations

from clipkit.engine.cpu_backend.compiled import obstacle
from clipkit.engine.cpu_backend.detached import softmax_sweep
from clipkit.engine.cpu_backend.exponential import anchor_statistics, exponential_products, log_sum_exps
from clipkit.engine.cpu_backend.lamb import lamb
from clipkit.engine.cpu_backend.second_order import curvature_products, curvature_sums
from clipkit.engine.cpu_backend.sigmoid import labelled_sigmoid_sweep, sigmoid_sweep
from clipkit.engine.cpu_backend.two_forms import pair_divergence

__all__ = [
    "SWEEPS",
    "anchor_statistics",
    "curvature_products",
    "curvature_sums",
    "exponential_products",
    "labelled_sigmoid_sweep",
    "lamb",
    "log_sum_exps",
    "obstacle",
    "pair_divergence",
    "sigmoid_sweep",
    "softmax_sweep",
]

SWEEPS = tuple(name for name in __all__ if name not in ("SWEEPS", "obstacle"))
