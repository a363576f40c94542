# SPDX-License-Identifier: Apache-2.0
"""Two forms over the same pairs, a student's S and a teacher's T: softmax targets recomputed in the tile that uses
them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.sweeps import PairStatistics
from clipkit.engine.torch_backend.tiles import Form


def pair_statistics(
    x: Tensor, y: Tensor, scale: Tensor, x_teacher: Tensor, y_teacher: Tensor, teacher_scale: Tensor
) -> PairStatistics:
    """See `clipkit.engine.sweeps.pair_statistics`."""
    student, teacher = Form.of(x, y, scale), Form.of(x_teacher, y_teacher, teacher_scale)
    row_student, row_lse, row_gap, row_teacher = (student.x.new_empty(x.shape[0]) for _ in range(4))
    column_student, column_lse = (student.x.new_full((y.shape[0],), -torch.inf) for _ in range(2))
    column_gap, column_teacher = (student.x.new_zeros(y.shape[0]) for _ in range(2))
    for rows in student.blocks():
        s, t = student.logits(rows), teacher.logits(rows)
        gap = t - s
        row_student[rows] = torch.logsumexp(s, dim=1)
        column_student = torch.logaddexp(column_student, torch.logsumexp(s, dim=0))

        row_lse[rows] = torch.logsumexp(t, dim=1)
        weights = (t - row_lse[rows, None]).exp_()
        row_gap[rows] = torch.linalg.vecdot(weights, gap, dim=1)
        row_teacher[rows] = torch.linalg.vecdot(weights, t, dim=1)

        merged = torch.logaddexp(column_lse, torch.logsumexp(t, dim=0))
        weights = (t - merged).exp_()
        shrink = (column_lse - merged).exp_()
        column_gap.mul_(shrink).add_(torch.linalg.vecdot(weights, gap, dim=0))
        column_teacher.mul_(shrink).add_(torch.linalg.vecdot(weights, t, dim=0))
        column_lse = merged
    return PairStatistics(
        row_student, row_lse, row_gap, row_teacher, column_student, column_lse, column_gap, column_teacher
    )


def pair_products(
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
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.pair_products`."""
    student, teacher = Form.of(x, y, scale), Form.of(x_teacher, y_teacher, teacher_scale)
    g_y = torch.empty_like(student.x)
    gt_x = torch.zeros_like(student.y)
    for rows in student.blocks():
        s, t = student.logits(rows), teacher.logits(rows)
        # Paired so that identical models give exactly zero, term by term.
        weights = (s - row_student[rows, None]).exp_().sub_((t - row_teacher[rows, None]).exp_())
        weights.add_(s.sub_(column_student).exp_().sub_(t.sub_(column_teacher).exp_()))
        torch.mm(weights, student.y, out=g_y[rows])
        gt_x.addmm_(weights.T, student.x[rows])
    return g_y, gt_x
