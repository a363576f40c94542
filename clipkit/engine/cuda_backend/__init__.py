# SPDX-License-Identifier: Apache-2.0
"""The compiled CUDA backend: hand-written kernels of csrc/cuda, used only when asked for by name.

Every kernel's body is also compiled for the host. With CLIPKIT_CUDA_ON_HOST=1 the backend takes CPU tensors and runs
each thread of each launch in turn: slow, and the same lines as on a card.
"""

from __future__ import annotations

from clipkit.engine.cuda_backend.finaliser import Suspects, merge_partials, repair_lines
from clipkit.engine.cuda_backend.hopper import log_sum_exps
from clipkit.engine.cuda_backend.lamb import lamb
from clipkit.engine.cuda_backend.library import obstacle
from clipkit.engine.cuda_backend.sample_state import advance_state, gather_state, scatter_state

__all__ = [
    "SWEEPS",
    "Suspects",
    "advance_state",
    "gather_state",
    "lamb",
    "log_sum_exps",
    "merge_partials",
    "obstacle",
    "repair_lines",
    "scatter_state",
]

SWEEPS = (
    "advance_state",
    "gather_state",
    "lamb",
    "log_sum_exps",
    "scatter_state",
)
