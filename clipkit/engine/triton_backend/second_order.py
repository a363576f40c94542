# SPDX-License-Identifier: Apache-2.0
"""Second order on Triton: the two sweeps of the CLIP loss's Hessian-vector product."""

from __future__ import annotations

from torch import Tensor

from clipkit.engine.sweeps import Direction, Softmaxes
from clipkit.engine.triton_backend.settings import product_precision


def curvature_sums(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    along_rows: Direction,
    along_columns: Direction,
    *,
    row_lse: Tensor,
    column_lse: Tensor,
    diagonal: int,
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.curvature_sums`."""
    from clipkit.kernels import curvature
    from clipkit.kernels.form import Form

    form = Form.of(x, y, scale, product_precision())
    lses = {"row_lse": row_lse, "column_lse": column_lse}
    return curvature.curvature_sums(form, along_rows, along_columns, **lses, diagonal=diagonal)


def curvature_products(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    along_rows: Direction,
    along_columns: Direction,
    softmaxes: Softmaxes,
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.curvature_products`."""
    from clipkit.kernels import curvature
    from clipkit.kernels.form import Form

    form = Form.of(x, y, scale, product_precision())
    return curvature.curvature_products(form, along_rows, along_columns, curvature.Softmaxes(*softmaxes))
