# SPDX-License-Identifier: Apache-2.0
"""G Y and Gᵀ X for the exponential family's weights: the launch code around kernels/tile_exponential_weights.py."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .config import TileConfig
from .form import Form, Own, on_device_of
from .tile_exponential_weights import tile_exponential_weights
from .waves import DEFAULT_WORKSPACE_BYTES, wave_products, weight_unit

# The logit is rounded before its offset is taken away, as it was when the offset was made of it: what is all of its
# line then weighs exactly one, where contraction would leave half a unit in the last place of the logit (5e-4 at 1e4).
UNFUSED = {"enable_fp_fusion": False}


class Terms(NamedTuple):
    """G_ij = exp(row_scale_i S_ij - row_offset_i) + exp(column_scale_j S_ij - column_offset_j), fp32: a term without
    offsets is absent, scales are one where absent. own_weight [rows] is G at each row's own pair.
    """

    row_offset: torch.Tensor | None
    column_offset: torch.Tensor | None
    row_scale: torch.Tensor | None
    column_scale: torch.Tensor | None
    own_weight: torch.Tensor

    def band(self, rows: slice) -> Terms:
        """Those of some consecutive rows."""
        return self._replace(
            row_offset=None if self.row_offset is None else self.row_offset[rows],
            row_scale=None if self.row_scale is None else self.row_scale[rows],
            own_weight=self.own_weight[rows],
        )

    @property
    def kind(self) -> str:
        """The kind of the kernel in the table of tiles."""
        if self.row_offset is None or self.column_offset is None:
            return "one-sided gradient"
        return "gradient" if self.column_scale is None else "scaled gradient"

    def contiguous(self) -> Terms:
        """The same, each vector without gaps."""
        return Terms._make(None if lines is None else lines.contiguous() for lines in self)

    def arguments(self) -> tuple[torch.Tensor, ...]:
        """For a kernel; a tensor that it does not read stands in for what is absent."""
        return tuple(self.own_weight if lines is None else lines for lines in self)


def exponential_products(
    x: torch.Tensor,
    y: torch.Tensor,
    scale: float | torch.Tensor,
    *,
    row_offset: torch.Tensor | None,
    column_offset: torch.Tensor | None,
    row_scale: torch.Tensor | None = None,
    column_scale: torch.Tensor | None = None,
    own_weight: torch.Tensor,
    diagonal: int = 0,
    labels: torch.Tensor | None = None,
    want_x: bool = True,
    want_y: bool = True,
    kept: torch.Tensor | None = None,
    precision: str = "ieee",
    config: TileConfig | None = None,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(G Y [n, d], Gᵀ X [m, d]) in fp32 for x [n, d], y [m, d] in fp32, fp16 or bf16 and S = scale * X Yᵀ:
    G as `Terms` says, each row's own pair in column i + diagonal or labels_i (int64 [n]). With `kept` [n, m] fp32, the
    products <x_i, y_j> are read there (see kept.py).

    Offsets, scales and own weights are such that no weight is larger than 2: with 16-bit inputs G is rounded to their
    type (see weight_unit). G is held for as many rows as fit `workspace_bytes`.
    """
    form = Form.of(x, y, scale, precision)
    own = Own("diagonal", diagonal) if labels is None else Own("labels", labels=labels)
    terms = Terms(row_offset, column_offset, row_scale, column_scale, own_weight).contiguous()
    tile = config or form.tile_for(terms.kind)

    def write_weights(rows: slice, weights: torch.Tensor) -> None:
        parts = (form.band(rows.start, rows.stop), own.band(rows.start, rows.stop), terms.band(rows))
        write_exponential_weights(*parts, tile, weights, None if kept is None else kept[rows])

    with on_device_of(x):
        return wave_products(
            form,
            write_weights,
            want_x=want_x,
            want_y=want_y,
            block_rows=tile.block_m,
            workspace_bytes=workspace_bytes,
        )


def write_exponential_weights(
    form: Form, own: Own, terms: Terms, tile: TileConfig, weights: torch.Tensor, kept: torch.Tensor | None
) -> None:
    """Fill weights [rows, columns] with weight_unit(dtype) * G; `kept` may be the same memory."""
    assert terms.row_offset is not None or terms.column_offset is not None, "one of the terms"
    tile_exponential_weights[form.tile_grid(tile)](
        *form.arguments(),
        *own.arguments(form),
        *terms.arguments(),
        weights if kept is None else kept,  # not read then
        0 if kept is None else kept.stride(0),
        weights,
        weights.stride(0),
        **form.constants(tile) | UNFUSED,
        GROUP=tile.group,
        EVEN=form.fills(tile),
        UNIT=weight_unit(form.x.dtype),
        OWN=own.kind,
        BY_ROW=terms.row_offset is not None,
        BY_COLUMN=terms.column_offset is not None,
        ROW_SCALED=terms.row_scale is not None,
        COLUMN_SCALED=terms.column_scale is not None,
        KEPT=kept is not None,
    )
