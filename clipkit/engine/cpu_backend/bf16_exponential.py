# SPDX-License-Identifier: Apache-2.0
"""The exponential family on bf16 towers: whole sweeps in C++, where products are so fast that what surrounds them
counts.

Threads take bands of columns. A thread packs a band, makes a tile of logits in its second-level cache and uses it up
there; additions to rows take turns band by band, so no bit depends on the number of threads. Beside the results a
sweep holds some 3 MiB a thread.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.cpu_backend.compiled import compiled
from clipkit.engine.cpu_backend.products import with_contiguous_rows


def log_sum_exps(x: Tensor, y: Tensor, scale: float, *, diagonal: int | None, kernel: str) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.log_sum_exps`; `scale` is positive, `kernel` one of `compiled().bf16_kernels()`."""
    rows, columns = (tower.new_empty(len(tower), dtype=torch.float32) for tower in (x, y))
    x, y = with_contiguous_rows(x), with_contiguous_rows(y)
    compiled().bf16_log_sum_exps(
        kernel,
        _described(x),
        _described(y),
        scale,
        diagonal is not None,
        diagonal or 0,
        rows.data_ptr(),
        columns.data_ptr(),
        torch.get_num_threads(),
    )
    return rows, columns


def exponential_products(
    x: Tensor,
    y: Tensor,
    scale: float,
    *,
    row_offset: Tensor,
    column_offset: Tensor,
    diagonal: int,
    diagonal_weight: Tensor,
    want_x: bool,
    want_y: bool,
    kernel: str,
) -> tuple[Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.exponential_products`; offsets are contiguous, +inf where a term is absent."""
    g_y = x.new_zeros(x.shape, dtype=torch.float32) if want_x else None
    gt_x = y.new_zeros(y.shape, dtype=torch.float32) if want_y else None
    x, y, diagonal_weight = with_contiguous_rows(x), with_contiguous_rows(y), diagonal_weight.contiguous()
    compiled().bf16_exponential_products(
        kernel,
        _described(x),
        _described(y),
        scale,
        row_offset.data_ptr(),
        column_offset.data_ptr(),
        diagonal,
        diagonal_weight.data_ptr(),
        0 if g_y is None else g_y.data_ptr(),
        0 if gt_x is None else gt_x.data_ptr(),
        torch.get_num_threads(),
    )
    return g_y, gt_x


def _described(tower: Tensor) -> tuple[int, int, int, int]:
    return tower.data_ptr(), tower.stride(0), *tower.shape
