# SPDX-License-Identifier: Apache-2.0
"""Two forms over the same pairs on Triton."""

from __future__ import annotations

from torch import Tensor

from clipkit.engine.sweeps import PairDivergence
from clipkit.engine.triton_backend.settings import product_precision


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
    from clipkit.kernels import pair_divergence as kernel
    from clipkit.kernels.form import Form

    student = Form.of(x, y, scale, product_precision())
    teacher = Form.of(x_teacher, y_teacher, teacher_scale, product_precision())
    lses = kernel.LogSumExps(row_student, row_teacher, column_student, column_teacher)
    return PairDivergence(*kernel.pair_divergence(student, teacher, lses, want_x=want_x, want_y=want_y))
