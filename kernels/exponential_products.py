# SPDX-License-Identifier: Apache-2.0
"""G Y and Gᵀ X for the exponential family's weights: the launch code around kernels/tile_exponential_weights.py."""

from __future__ import annotations

import torch

from .config import TileConfig
from .form import Form, Own, on_device_of
from .tile_exponential_weights import tile_exponential_weights
from .waves import DEFAULT_WORKSPACE_BYTES, wave_products, weight_unit

# The logit is rounded before its offset is taken away, as it was when the offset was made of it: what is all of its
# line then weighs exactly one, where contraction would leave half a unit in the last place of the logit (5e-4 at 1e4).
UNFUSED = {"enable_fp_fusion": False}


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
    precision: str = "ieee",
    config: TileConfig | None = None,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(G Y [n, d], Gᵀ X [m, d]) in fp32 for x [n, d], y [m, d] in fp32, fp16 or bf16 and S = scale * X Yᵀ:
    G_ij = exp(row_scale_i S_ij - row_offset_i) + exp(column_scale_j S_ij - column_offset_j), a term without offsets
    being absent and scales one where absent, but own_weight_i at row i's own pair, in column i + diagonal or labels_i
    (int64 [n]).

    Offsets, scales and own weights are fp32 and such that no weight is larger than 2: with 16-bit inputs G is rounded
    to their type (see weight_unit). G is held for as many rows as fit `workspace_bytes`.
    """
    assert row_offset is not None or column_offset is not None, "one of the terms"
    form = Form.of(x, y, scale, precision)
    own = Own("diagonal", diagonal) if labels is None else Own("labels", labels=labels)
    tile = config or form.tile_for("gradient")
    own_weight = own_weight.contiguous()
    # A tensor that no branch of the kernel reads stands in for what is absent.
    across, down, row_scales, column_scales = (
        own_weight if lines is None else lines.contiguous()
        for lines in (row_offset, column_offset, row_scale, column_scale)
    )

    def write_weights(rows: slice, weights: torch.Tensor) -> None:
        band = form.band(rows.start, rows.stop)
        tile_exponential_weights[band.tile_grid(tile)](
            *band.arguments(),
            *own.band(rows.start, rows.stop).arguments(band),
            across[rows],
            down,
            row_scales[rows],
            column_scales,
            own_weight[rows],
            weights,
            weights.stride(0),
            **band.constants(tile) | UNFUSED,
            GROUP=tile.group,
            EVEN=band.fills(tile),
            UNIT=weight_unit(x.dtype),
            OWN=own.kind,
            BY_ROW=row_offset is not None,
            BY_COLUMN=column_offset is not None,
            ROW_SCALED=row_scale is not None,
            COLUMN_SCALED=column_scale is not None,
        )

    with on_device_of(x):
        return wave_products(
            form,
            write_weights,
            want_x=want_x,
            want_y=want_y,
            block_rows=tile.block_m,
            workspace_bytes=workspace_bytes,
        )
