# SPDX-License-Identifier: Apache-2.0
"""Sweeps over two forms and along directions, on the kernels and in float64 by the torch backend: relative errors.

Shared by interpreter and GPU tests; everything runs in the process that calls it.
"""

from __future__ import annotations

from typing import Any

import torch

from clipkit.engine import torch_backend
from clipkit.engine.sweeps import Direction
from tests.interpreter.kernel_cases import unit_features

LSES = ("row_student", "column_student", "row_teacher", "column_teacher")


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """|got - want| / |want|; NaN where either has one."""
    return float((got.double().cpu() - want.double().cpu()).norm() / want.double().norm().clamp_min(1e-30))


def two_forms(
    rows: int, columns: int, width: int, teacher_width: int, dtype: torch.dtype, scales: tuple[float, float]
) -> list[torch.Tensor]:
    """x, y, scale and the teacher's x, y, scale."""
    towers = [(rows, width), (columns, width), (rows, teacher_width), (columns, teacher_width)]
    x, y, x_teacher, y_teacher = (unit_features(*size, dtype, seed) for seed, size in enumerate(towers))
    return [x, y, torch.tensor(scales[0]), x_teacher, y_teacher, torch.tensor(scales[1])]


def exact_lses(forms: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The four log-sum-exps of the rounded inputs, in float64."""
    wide = [tensor.double().cpu() for tensor in forms]
    student = torch_backend.log_sum_exps(*wide[:3], diagonal=None)
    teacher = torch_backend.log_sum_exps(*wide[3:], diagonal=None)
    return dict(zip(LSES, (*student, *teacher), strict=True))


def exact_divergence(forms: list[torch.Tensor]) -> Any:
    """What pair_divergence should give, in float64."""
    wide = [tensor.double().cpu() for tensor in forms]
    return torch_backend.pair_divergence(*wide, **exact_lses(forms), want_x=True, want_y=True)


def kernel_divergence(
    forms: list[torch.Tensor], *, want_x: bool = True, want_y: bool = True, **options: Any
) -> tuple[torch.Tensor | None, ...]:
    """The kernels on the same forms, with log-sum-exps from the kernels as well."""
    from clipkit.kernels.form import Form
    from clipkit.kernels.pair_divergence import LogSumExps, pair_divergence
    from clipkit.kernels.row_col_lse import row_col_lse

    row_student, column_student = row_col_lse(*forms[:3])
    row_teacher, column_teacher = row_col_lse(*forms[3:])
    lses = LogSumExps(row_student, row_teacher, column_student, column_teacher)
    pair = (Form.of(*forms[:3]), Form.of(*forms[3:]))
    return pair_divergence(*pair, lses, want_x=want_x, want_y=want_y, **options)


def curvature_case(
    rows: int, columns: int, width: int, dtype: torch.dtype, *, separate: bool, device: str = "cpu"
) -> tuple[list[torch.Tensor], tuple[Direction, Direction]]:
    """A form (x, y, scale) and the directions of rows and columns: one for both unless `separate`."""
    x, y = unit_features(rows, width, dtype, 0).to(device), unit_features(columns, width, dtype, 1).to(device)
    generator = torch.Generator().manual_seed(2)

    def direction() -> Direction:
        towers = (1e-4 * torch.randn(size, width, generator=generator) for size in (rows, columns))
        return Direction(*(tower.to(device) for tower in towers))

    along_rows = direction()
    scale = torch.tensor(30.0, device=device)
    return [x, y, scale], (along_rows, direction() if separate else along_rows)


def curvature_errors(
    form: list[torch.Tensor], directions: tuple[Direction, Direction], *, diagonal: int = 0, **options: Any
) -> dict[str, float]:
    """Relative errors of both sweeps' results. The second takes the first's sums as means: they share the rounding
    of the directions. The diagonal is that of the softmaxes themselves.
    """
    from clipkit.kernels import curvature
    from clipkit.kernels.form import Form

    wide = [tensor.double().cpu() for tensor in form]
    wide_rows = Direction(*(tower.double().cpu() for tower in directions[0]))
    one = directions[0] is directions[1]
    wide_columns = wide_rows if one else Direction(*(tower.double().cpu() for tower in directions[1]))
    row_lse, column_lse = torch_backend.log_sum_exps(*wide, diagonal=None)
    positive = (wide[2] * wide[0] @ wide[1].T).diagonal(diagonal)
    row_miss = torch.zeros_like(row_lse)
    column_miss = torch.zeros_like(row_lse)
    row_miss[: len(positive)] = 1 - (positive - row_lse[: len(positive)]).exp()
    column_miss[: len(positive)] = 1 - (positive - column_lse[diagonal : diagonal + len(positive)]).exp()
    lses = {"row_lse": row_lse, "column_lse": column_lse}
    means = torch_backend.curvature_sums(*wide, wide_rows, wide_columns, **lses, diagonal=diagonal)
    positive_weight = -means[0] * (1 - row_miss)
    on_positives = (row_miss, column_miss, positive_weight)
    exact = curvature.Softmaxes(*lses.values(), *means, *on_positives, diagonal)
    want = torch_backend.curvature_products(*wide, wide_rows, wide_columns, exact)

    def narrow(*vectors: torch.Tensor) -> list[torch.Tensor]:
        return [vector.float().to(form[0].device) for vector in vectors]

    got_lses = dict(zip(lses, narrow(*lses.values()), strict=True))
    got_means = curvature.curvature_sums(Form.of(*form), *directions, **got_lses, diagonal=diagonal, **options)
    softmaxes = curvature.Softmaxes(*got_lses.values(), *got_means, *narrow(*on_positives), diagonal)
    got = curvature.curvature_products(Form.of(*form), *directions, softmaxes, **options)
    names = ("row_mean", "column_mean", "for_x", "for_y")
    pairs = zip((*got_means, *got), (*means, *want), strict=True)
    return {name: relative(*pair) for name, pair in zip(names, pairs, strict=True)}
