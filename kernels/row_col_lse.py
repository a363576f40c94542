# SPDX-License-Identifier: Apache-2.0
"""Row and column log-sum-exps of S = scale * X Yᵀ in one pass, S never stored: the launch code around the kernels."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
import triton

from .config import REPAIR_CONFIG, TileConfig, config_for
from .merge import merge_partials
from .repair import repair_rows
from .tile_statistics import tile_statistics

# Triton 3.10 turns contraction to FMA off unless asked: SASS, speed and rounding must not change with an upgrade.
FUSION = {"enable_fp_fusion": True}
MERGE_BLOCK = 128
DEFAULT_WORKSPACE_BYTES = 64 << 20


def row_col_lse(
    x: torch.Tensor,
    y: torch.Tensor,
    scale: float | torch.Tensor,
    *,
    diagonal: int | None = None,
    config: TileConfig | None = None,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row LSEs [N] and column LSEs [M], fp32, of scale * x @ y.T for x [N, d], y [M, d] in fp32, fp16 or bf16.

    `scale` is a float or a one-element tensor; it multiplies the fp32 product. With `diagonal` the pairs
    (i, diagonal + i) are left out, and a line of which nothing is left gets -inf. Partial sums take at most about
    `workspace_bytes`: larger problems run in bands of rows. Nothing is read back to the host. An empty side gives
    -inf for the lines of the other. The caller has checked shapes, dtypes and devices.
    """
    (rows, width), (columns, y_width) = x.shape, y.shape
    assert width == y_width, "x and y must be equally wide"
    assert x.dtype == y.dtype, "x and y must have one dtype"
    x, y = _unit_inner_stride(x), _unit_inner_stride(y)
    row_lse = torch.full((rows,), -torch.inf, dtype=torch.float32, device=x.device)
    column_lse = torch.full((columns,), -torch.inf, dtype=torch.float32, device=x.device)
    if rows == 0 or columns == 0:
        return row_lse, column_lse
    # Triton launches on the current device, which need not be the one the features are on.
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        form = _Form(x, y, _device_scalar(scale, x.device), diagonal)
        _run(form, row_lse, column_lse, config or config_for(x.device, x.dtype), workspace_bytes)
    return row_lse, column_lse


class _Form(NamedTuple):
    """S = scale * X Yᵀ; with a diagonal, without the pairs (i, diagonal + i)."""

    x: torch.Tensor
    y: torch.Tensor
    scale: torch.Tensor
    diagonal: int | None

    def band(self, start: int, stop: int) -> _Form:
        """Some consecutive rows of S."""
        shifted = None if self.diagonal is None else self.diagonal + start
        return self._replace(x=self.x[start:stop], diagonal=shifted)

    def transposed(self) -> _Form:
        return _Form(self.y, self.x, self.scale, None if self.diagonal is None else -self.diagonal)

    def arguments(self) -> tuple[int, ...]:
        """Sizes, strides and diagonal, in the order in which the kernels take them."""
        (rows, _), columns = self.x.shape, self.y.shape[0]
        return rows, columns, self.x.stride(0), self.y.stride(0), self.diagonal or 0


def _run(
    form: _Form, row_lse: torch.Tensor, column_lse: torch.Tensor, config: TileConfig, workspace_bytes: int
) -> None:
    """Sweep band after band, merge, repair; the results land in row_lse and column_lse."""
    x, rows, columns = form.x, form.x.shape[0], form.y.shape[0]
    row_suspect = torch.empty(rows, dtype=torch.int8, device=x.device)
    column_suspect = torch.empty(columns, dtype=torch.int8, device=x.device)
    column_state = torch.empty((3, columns), dtype=torch.float32, device=x.device)

    band = _band_rows(rows, columns, config, workspace_bytes)
    for start in range(0, rows, band):
        stop = min(start + band, rows)
        row_sums, column_sums, offsets = _sweep(form.band(start, stop), config)
        column_tiles = offsets.shape[1]
        band_out = (row_lse[start:stop], row_suspect[start:stop])
        _merge(row_sums, offsets, (column_tiles, 1), config.block_m, column_state, band_out, first=True, last=True)
        column_out = (column_lse, column_suspect)
        ends = {"first": start == 0, "last": stop == rows}
        _merge(column_sums, offsets, (1, column_tiles), config.block_n, column_state, column_out, **ends)
    _repair(form, row_suspect, row_lse)
    _repair(form.transposed(), column_suspect, column_lse)


def _unit_inner_stride(features: torch.Tensor) -> torch.Tensor:
    return features if features.stride(-1) == 1 else features.contiguous()


def _device_scalar(scale: float | torch.Tensor, device: torch.device) -> torch.Tensor:
    """The scale as one fp32 element on the device, without a host synchronisation when it is there already."""
    if isinstance(scale, torch.Tensor):
        return scale.detach().to(device=device, dtype=torch.float32).reshape(1)
    return torch.full((1,), scale, dtype=torch.float32, device=device)


def _band_rows(rows: int, columns: int, config: TileConfig, workspace_bytes: int) -> int:
    """Rows per band: whole groups of tiles whose partial sums (fp32) fit the workspace, at least one group."""
    group_rows = config.block_m * config.group
    group_bytes = 4 * (group_rows * triton.cdiv(columns, config.block_n) + config.group * columns)
    return min(rows, group_rows * max(1, workspace_bytes // group_bytes))


def _sweep(form: _Form, config: TileConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row sums [column tiles, N], column sums [row tiles, M] and offsets [row tiles, column tiles] of all tiles."""
    x, y = form.x, form.y
    (rows, width), columns = x.shape, y.shape[0]
    row_tiles, column_tiles = triton.cdiv(rows, config.block_m), triton.cdiv(columns, config.block_n)
    row_sums = torch.empty((column_tiles, rows), dtype=torch.float32, device=x.device)
    column_sums = torch.empty((row_tiles, columns), dtype=torch.float32, device=x.device)
    offsets = torch.empty((row_tiles, column_tiles), dtype=torch.float32, device=x.device)
    tile_statistics[(row_tiles * column_tiles,)](
        x,
        y,
        form.scale,
        row_sums,
        column_sums,
        offsets,
        *form.arguments(),
        WIDTH=width,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP=config.group,
        EVEN_M=rows % config.block_m == 0,
        EVEN_N=columns % config.block_n == 0,
        WITHOUT_DIAGONAL=form.diagonal is not None,
        num_warps=config.warps,
        num_stages=config.stages,
        **FUSION,
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


def _repair(form: _Form, suspect: torch.Tensor, log_sum: torch.Tensor) -> None:
    """Compute the suspect rows again, each relative to its own largest logit."""
    config = REPAIR_CONFIG
    rows, width = form.x.shape
    repair_rows[(triton.cdiv(rows, config.block_m),)](
        form.x,
        form.y,
        form.scale,
        suspect,
        log_sum,
        *form.arguments(),
        WIDTH=width,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        WITHOUT_DIAGONAL=form.diagonal is not None,
        num_warps=config.warps,
        num_stages=config.stages,
        **FUSION,
    )
