# SPDX-License-Identifier: Apache-2.0
"""The compiled CPU backend: products by torch's BLAS into a cache-sized tile, then one fused C++ pass over it.

A pass makes row and column statistics from one exponential per logit, where plain torch streams the tile through memory
for each of maximum, exponential and sum, twice.
"""

from __future__ import annotations

from clipkit.engine.cpu_backend.compiled import obstacle
from clipkit.engine.cpu_backend.exponential import exponential_products, log_sum_exps

__all__ = ["SWEEPS", "exponential_products", "log_sum_exps", "obstacle"]

SWEEPS = tuple(name for name in __all__ if name not in ("SWEEPS", "obstacle"))
