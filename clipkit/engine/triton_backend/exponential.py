# SPDX-License-Identifier: Apache-2.0
"""Exponential family on Triton."""

from __future__ import annotations

from torch import Tensor

from clipkit.engine.triton_backend.settings import product_precision
from clipkit.engine.workspace import Workspace


def log_sum_exps(
    x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None, workspace: Workspace | None = None
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.log_sum_exps`; products are kept where kernels/kept.py says that it pays."""
    from clipkit.kernels.kept import keeping_pays
    from clipkit.kernels.row_col_lse import row_col_lse

    precision = product_precision()
    kept = workspace.keep(len(x), len(y), x) if workspace is not None and keeping_pays(x, precision) else None
    return row_col_lse(x, y, scale, diagonal=diagonal, kept=_as_matrix(kept, x, y), precision=precision)


def _as_matrix(kept: Tensor | None, x: Tensor, y: Tensor) -> Tensor | None:
    return None if kept is None else kept.view(len(x), len(y))


def anchor_statistics(x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.anchor_statistics`."""
    from clipkit.kernels import row_statistics

    return row_statistics.anchor_statistics(x, y, scale, diagonal=diagonal, precision=product_precision())


def exponential_products(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    *,
    row_offset: Tensor | None,
    column_offset: Tensor | None,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    diagonal: int,
    diagonal_weight: Tensor,
    want_x: bool,
    want_y: bool,
    workspace: Workspace | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """See `clipkit.engine.sweeps.exponential_products`."""
    from clipkit.kernels import exponential_products as kernel

    return kernel.exponential_products(
        x,
        y,
        scale,
        row_offset=row_offset,
        column_offset=column_offset,
        row_scale=row_scale,
        column_scale=column_scale,
        own_weight=diagonal_weight,
        diagonal=diagonal,
        want_x=want_x,
        want_y=want_y,
        kept=_as_matrix(None if workspace is None else workspace.take(), x, y),
        precision=product_precision(),
    )
