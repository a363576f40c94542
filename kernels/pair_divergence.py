# SPDX-License-Identifier: Apache-2.0
"""Divergence of a student's form from a teacher's, and the products of its gradient, in one sweep: the launch code."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .config import TileConfig
from .form import Form, on_device_of
from .tile_divergence import tile_divergence
from .waves import DEFAULT_WORKSPACE_BYTES, wave_products, weight_unit


class LogSumExps(NamedTuple):
    """Of a student's and a teacher's form, fp32: rows [N], columns [M]."""

    row_student: torch.Tensor
    row_teacher: torch.Tensor
    column_student: torch.Tensor
    column_teacher: torch.Tensor

    def band(self, rows: slice) -> LogSumExps:
        """Those of some consecutive rows."""
        return self._replace(row_student=self.row_student[rows], row_teacher=self.row_teacher[rows])


def pair_divergence(
    student: Form,
    teacher: Form,
    lses: LogSumExps,
    *,
    want_x: bool,
    want_y: bool,
    config: TileConfig | None = None,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(divergence, entropy, G Y [N, d], Gᵀ X [M, d]) in fp32, the products None where not wanted, for G = P - Pt + Q -
    Qt. Both forms have the same rows and columns; their widths may differ, their dtypes may not.
    """
    assert (student.rows, student.columns) == (teacher.rows, teacher.columns), "the forms must be over the same pairs"
    lses = LogSumExps(*(lse.contiguous() for lse in lses))
    tile = config or student.tile_for("pair")
    totals = torch.zeros(2, dtype=torch.float32, device=student.x.device)

    def write_weights(rows: slice, weights: torch.Tensor | None) -> None:
        band = (student.band(rows.start, rows.stop), teacher.band(rows.start, rows.stop), lses.band(rows))
        totals.add_(_sweep(*band, weights, tile).sum(1))

    g_y, gt_x = None, None
    with on_device_of(student.x):
        if want_x or want_y:
            g_y, gt_x = wave_products(
                student,
                write_weights,
                want_x=want_x,
                want_y=want_y,
                block_rows=tile.block_m,
                workspace_bytes=workspace_bytes,
            )
        elif student.rows and student.columns:
            write_weights(slice(0, student.rows), None)
    return totals[0], totals[1], g_y, gt_x


def _sweep(
    student: Form, teacher: Form, lses: LogSumExps, weights: torch.Tensor | None, config: TileConfig
) -> torch.Tensor:
    """Divergence and entropy of every tile, [2, tiles]; the weights are written unless None."""
    (tiles,) = student.tile_grid(config)
    partials = torch.empty((2, tiles), dtype=torch.float32, device=student.x.device)
    tile_divergence[(tiles,)](
        *student.arguments(),
        teacher.x,
        teacher.y,
        teacher.scale,
        teacher.x.stride(0),
        teacher.y.stride(0),
        *lses,
        *partials,
        partials if weights is None else weights,
        0 if weights is None else weights.stride(0),
        **student.constants(config),
        TEACHER_WIDTH=teacher.x.shape[1],
        GROUP=config.group,
        EVEN=student.fills(config),
        UNIT=weight_unit(student.x.dtype),
        WANT_WEIGHTS=weights is not None,
    )
    return partials
