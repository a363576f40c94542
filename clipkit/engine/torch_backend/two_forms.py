# SPDX-License-Identifier: Apache-2.0
"""Two forms over the same pairs, a student's S and a teacher's T: softmax targets recomputed in the tile that uses
them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipkit.engine.sweeps import PairDivergence
from clipkit.engine.torch_backend.tiles import Form


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
    student, teacher = Form.of(x, y, scale), Form.of(x_teacher, y_teacher, teacher_scale)
    divergence, entropy = student.x.new_zeros(()), student.x.new_zeros(())
    g_y = torch.empty_like(student.x) if want_x else None
    gt_x = torch.zeros_like(student.y) if want_y else None
    for rows in student.blocks():
        s, t = student.logits(rows), teacher.logits(rows)
        gap = s - t
        weights = torch.zeros_like(s)
        for lse, to_lse in ((row_student[rows, None], row_teacher[rows, None]), (column_student, column_teacher)):
            to_log = t - to_lse
            to_probability = to_log.exp()
            difference, terms = _divergence_terms(gap - (lse - to_lse), s - lse, to_probability)
            divergence += terms.sum()
            entropy -= to_log.mul_(to_probability).sum()
            weights += difference
        if g_y is not None:
            torch.mm(weights, student.y, out=g_y[rows])
        if gt_x is not None:
            gt_x.addmm_(weights.T, student.x[rows])
    return PairDivergence(divergence, entropy, g_y, gt_x)


def _divergence_terms(r: Tensor, log_probability: Tensor, to_probability: Tensor) -> tuple[Tensor, Tensor]:
    """(P - Pt, Pt φ(r)) elementwise, for r = log P/Pt."""
    excess = _excess(r)
    near = r.abs() < 0.5
    beyond = log_probability.exp().sub_(to_probability)
    difference = torch.where(near, (r + excess).mul_(to_probability), beyond)
    terms = torch.where(near, excess.mul_(to_probability), beyond - r * to_probability)
    return difference, terms


def _excess(r: Tensor) -> Tensor:
    """φ(r) = e^r - 1 - r = r²/2 + r³/6 + ... for |r| < 1/2, where the exponential would leave no digits of it."""
    last = 9 if r.dtype == torch.float32 else 15  # the first term left out is below the type's rounding of r²/2
    series = torch.full_like(r, 1 / math.factorial(last))
    for power in range(last - 1, 1, -1):
        series.mul_(r).add_(1 / math.factorial(power))
    return series.mul_(r).mul_(r)
