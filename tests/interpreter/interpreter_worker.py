# SPDX-License-Identifier: Apache-2.0
"""What runs in the interpreter's own process. TRITON_INTERPRET switches triton over for a whole process and must be set
before it is imported, so the interpreter gets a process to itself and the compiler keeps this one."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np


def start() -> ProcessPoolExecutor:
    """One fresh process with the interpreter switched on."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_switch_on)


def _switch_on() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    torch.set_num_threads(1)


def row_col_lse(x: np.ndarray, y: np.ndarray, scale: float | np.ndarray, **options: Any) -> tuple[np.ndarray, ...]:
    """The host function on arrays; a scale given as an array becomes a tensor."""
    import torch
    from clipkit.kernels.row_col_lse import row_col_lse as kernel

    factor = torch.from_numpy(scale) if isinstance(scale, np.ndarray) else scale
    return tuple(result.numpy() for result in kernel(torch.from_numpy(x), torch.from_numpy(y), factor, **options))


def far_apart_rows() -> tuple[np.ndarray, ...]:
    """Two rows 2**31 elements apart (only the pages that are touched exist), and the same rows side by side."""
    import torch
    from clipkit.kernels.row_col_lse import row_col_lse as kernel

    y = torch.eye(3, 16)
    close = torch.arange(32, dtype=torch.float32).reshape(2, 16) / 32
    far = torch.empty(2**31 + 16, dtype=torch.float32).as_strided((2, 16), (2**31, 1))
    far.copy_(close)
    return tuple(result.numpy() for rows in (close, far) for result in kernel(rows, y, 1.0))


def products_of_far_apart_rows() -> tuple[np.ndarray, ...]:
    """The same for the gradients: (G Y, Gᵀ X) of close rows, then of far ones."""
    import torch
    from clipkit.kernels.exponential_products import exponential_products

    y, zero = torch.eye(3, 16), torch.zeros(2)
    close = torch.arange(32, dtype=torch.float32).reshape(2, 16) / 32
    far = torch.empty(2**31 + 16, dtype=torch.float32).as_strided((2, 16), (2**31, 1))
    far.copy_(close)
    return tuple(
        result.numpy()
        for rows in (close, far)
        for result in exponential_products(rows, y, 1.0, row_offset=zero, column_offset=None, own_weight=zero)
        if result is not None
    )


def merge_poisoned() -> np.ndarray:
    """The finaliser on partials that hold a NaN and a wholly flushed line."""
    import torch
    from clipkit.kernels.merge import merge_partials

    sums = torch.tensor([[1.0, float("nan"), 0.0], [2.0, 1.0, 0.0]])
    log_sum, suspect = torch.empty(3), torch.empty(3, dtype=torch.int8)
    merge_partials[(1,)](
        sums, torch.zeros(1, 2), log_sum, log_sum, log_sum, log_sum, suspect, 3, 2, 2, 1,
        LINES_PER_OFFSET=64, BLOCK=4, FIRST=True, LAST=True,
    )  # fmt: skip
    return np.stack([log_sum.numpy(), suspect.numpy()])


def in_worker(pool: ProcessPoolExecutor, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of this module in the interpreter's process."""
    return pool.submit(function, *arguments, **options).result()
