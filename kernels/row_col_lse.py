# SPDX-License-Identifier: Apache-2.0
"""Row and column log-sum-exps of S = scale * X Yᵀ in one pass, S never stored: the launch code around the kernels."""

from __future__ import annotations

import torch
import triton

from .config import TileConfig
from .form import FUSION, Form, on_device_of
from .merge import merge_partials
from .repair import repair_rows
from .tile_statistics import tile_statistics

MERGE_BLOCK = 128
DEFAULT_WORKSPACE_BYTES = 64 << 20


def row_col_lse(
    x: torch.Tensor,
    y: torch.Tensor,
    scale: float | torch.Tensor,
    *,
    diagonal: int | None = None,
    precision: str = "ieee",
    config: TileConfig | None = None,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row LSEs [N] and column LSEs [M], fp32, of scale * x @ y.T for x [N, d], y [M, d] in fp32, fp16 or bf16.

    `scale` is a float or a one-element tensor; it multiplies the fp32 product. With `diagonal` the pairs
    (i, diagonal + i) are left out, and a line of which nothing is left gets -inf. Partial sums take at most about
    `workspace_bytes`: larger problems run in bands of rows. Nothing is read back to the host. An empty side gives
    -inf for the lines of the other. The caller has checked shapes, dtypes and devices.
    """
    form = Form.of(x, y, scale, precision)
    row_lse = torch.full((form.rows,), -torch.inf, dtype=torch.float32, device=x.device)
    column_lse = torch.full((form.columns,), -torch.inf, dtype=torch.float32, device=x.device)
    if form.rows and form.columns:
        with on_device_of(x):
            _run(form, diagonal, row_lse, column_lse, config or form.tile_for("statistics"), workspace_bytes)
    return row_lse, column_lse


def _run(
    form: Form,
    diagonal: int | None,
    row_lse: torch.Tensor,
    column_lse: torch.Tensor,
    config: TileConfig,
    workspace_bytes: int,
) -> None:
    """Sweep band after band, merge, repair; the results land in row_lse and column_lse."""
    x, rows, columns = form.x, form.rows, form.columns
    row_suspect = torch.empty(rows, dtype=torch.int8, device=x.device)
    column_suspect = torch.empty(columns, dtype=torch.int8, device=x.device)
    column_state = torch.empty((3, columns), dtype=torch.float32, device=x.device)

    band = _band_rows(rows, columns, config, workspace_bytes)
    for start in range(0, rows, band):
        stop = min(start + band, rows)
        row_sums, column_sums, offsets = _sweep(form.band(start, stop), _shifted(diagonal, start), config)
        column_tiles = offsets.shape[1]
        band_out = (row_lse[start:stop], row_suspect[start:stop])
        _merge(row_sums, offsets, (column_tiles, 1), config.block_m, column_state, band_out, first=True, last=True)
        column_out = (column_lse, column_suspect)
        ends = {"first": start == 0, "last": stop == rows}
        _merge(column_sums, offsets, (1, column_tiles), config.block_n, column_state, column_out, **ends)
    _repair(form, diagonal, row_suspect, row_lse)
    _repair(form.transposed(), None if diagonal is None else -diagonal, column_suspect, column_lse)


def _shifted(diagonal: int | None, rows: int) -> int | None:
    return None if diagonal is None else diagonal + rows


def _band_rows(rows: int, columns: int, config: TileConfig, workspace_bytes: int) -> int:
    """Rows per band: whole groups of tiles whose partial sums (fp32) fit the workspace, at least one group."""
    group_rows = config.block_m * config.group
    group_bytes = 4 * (group_rows * triton.cdiv(columns, config.block_n) + config.group * columns)
    return min(rows, group_rows * max(1, workspace_bytes // group_bytes))


def _sweep(form: Form, diagonal: int | None, config: TileConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row sums [column tiles, N], column sums [row tiles, M] and offsets [row tiles, column tiles] of all tiles."""
    x, rows, columns = form.x, form.rows, form.columns
    row_tiles, column_tiles = triton.cdiv(rows, config.block_m), triton.cdiv(columns, config.block_n)
    row_sums = torch.empty((column_tiles, rows), dtype=torch.float32, device=x.device)
    column_sums = torch.empty((row_tiles, columns), dtype=torch.float32, device=x.device)
    offsets = torch.empty((row_tiles, column_tiles), dtype=torch.float32, device=x.device)
    tile_statistics[form.tile_grid(config)](
        *form.arguments(),
        diagonal or 0,
        row_sums,
        column_sums,
        offsets,
        **form.constants(config),
        GROUP=config.group,
        EVEN_M=rows % config.block_m == 0,
        EVEN_N=columns % config.block_n == 0,
        WITHOUT_DIAGONAL=diagonal is not None,
    )
    return row_sums, column_sums, offsets


def _merge(
    sums: torch.Tensor,
    offsets: torch.Tensor,
    offset_strides: tuple[int, int],
    lines_per_offset: int,
    state: torch.Tensor,
    out: tuple[torch.Tensor, torch.Tensor],
    *,
    first: bool,
    last: bool,
) -> None:
    """Fold partial sums into log-sum-exps and suspect flags; `state` carries columns from band to band."""
    tiles, lines = sums.shape
    merge_partials[(triton.cdiv(lines, MERGE_BLOCK),)](
        sums,
        offsets,
        *state,
        *out,
        lines,
        tiles,
        *offset_strides,
        LINES_PER_OFFSET=lines_per_offset,
        BLOCK=MERGE_BLOCK,
        FIRST=first,
        LAST=last,
        num_warps=4,
        **FUSION,
    )


def _repair(form: Form, diagonal: int | None, suspect: torch.Tensor, log_sum: torch.Tensor) -> None:
    """Compute the suspect rows again, each relative to its own largest logit."""
    config = form.tile_for("repair")
    repair_rows[(triton.cdiv(form.rows, config.block_m),)](
        *form.arguments(),
        diagonal or 0,
        suspect,
        log_sum,
        **form.constants(config),
        WITHOUT_DIAGONAL=diagonal is not None,
    )
