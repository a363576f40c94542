# SPDX-License-Identifier: Apache-2.0
"""Two forms over the same pairs, a student's S and a teacher's T: both tiles are made together and neither is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.cpu_backend.compiled import compiled
from clipkit.engine.cpu_backend.passes import at, fp32_zeros, tile_of
from clipkit.engine.cpu_backend.products import products_of
from clipkit.engine.cpu_backend.tiles import over_tiles, whole
from clipkit.engine.sweeps import PairDivergence


def pair_divergence(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_teacher: Tensor,
    y_teacher: Tensor,
    teacher_scale: Tensor,
    *,
    row_student: Tensor,
    row_teacher: Tensor,
    column_student: Tensor,
    column_teacher: Tensor,
    want_x: bool,
    want_y: bool,
) -> PairDivergence:
    """See `clipkit.engine.sweeps.pair_divergence`."""
    student, teacher = products_of(x, y), products_of(x_teacher, y_teacher)
    factor, teacher_factor = float(scale), float(teacher_scale)
    row_lses = [lse.contiguous() for lse in (row_student, row_teacher)]
    column_lses = [lse.contiguous() for lse in (column_student, column_teacher)]
    g_y, gt_x = fp32_zeros(want_x, x), fp32_zeros(want_y, y)

    def work(rows: slice, columns: slice, tile: Tensor, other: Tensor) -> tuple[float, float]:
        student.tile(rows, columns, tile)
        teacher.tile(rows, columns, other)
        lses = (*at(rows, *row_lses), *at(columns, *column_lses))
        sums = compiled().tile_divergence(tile_of(tile, factor), other.data_ptr(), teacher_factor, *lses)
        if g_y is not None:
            student.add_to_rows(tile, rows, columns, g_y)
        if gt_x is not None:
            student.add_to_columns(tile, rows, columns, gt_x)
        return sums

    sums = over_tiles(whole(x, y), work, like=x, buffers=2)
    divergence, entropy = torch.tensor(sums, dtype=torch.float64, device=x.device).view(-1, 2).sum(0).float().unbind()
    return PairDivergence(divergence, entropy, g_y, gt_x)
