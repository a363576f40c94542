# SPDX-License-Identifier: Apache-2.0
"""Row and column log-sum-exps of S = scale * X Yᵀ in one pass, S never stored: the launch code around the kernels."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton

from .config import TileConfig, rows_of_a_thread
from .form import FUSION, Form, Own, on_device_of
from .merge import merge_partials
from .row_statistics import FEWEST_PROGRAMS, sweep_rows
from .tile_statistics import tile_statistics

MERGE_BLOCK = 128
DEFAULT_WORKSPACE_BYTES = 64 << 20
# Tiles whose column sums stay in registers: the exchange between threads that ends them costs 192 shuffles on sm_90,
# a tile by itself 16.
MOST_STACKED = 8


def row_col_lse(
    x: torch.Tensor,
    y: torch.Tensor,
    scale: float | torch.Tensor,
    *,
    diagonal: int | None = None,
    precision: str = "ieee",
    config: TileConfig | None = None,
    stack: int | None = None,
    kept: torch.Tensor | None = None,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row LSEs [N] and column LSEs [M], fp32, of scale * x @ y.T for x [N, d], y [M, d] in fp32, fp16 or bf16.

    `scale` is a float or a one-element tensor; it multiplies the fp32 product. With `diagonal` the pairs
    (i, diagonal + i) are left out, and a line of which nothing is left gets -inf. Partial sums take at most about
    `workspace_bytes`: larger problems run in bands of rows. The products <x_i, y_j> are left in `kept` [N, M] fp32
    (see kept.py) if given. Nothing is read back to the host. An empty side gives -inf for the lines of the other. The
    caller has checked shapes, dtypes and devices.
    """
    form = Form.of(x, y, scale, precision)
    own = Own() if diagonal is None else Own("diagonal", diagonal)
    rows, columns = _Lines.of(form.rows, form), _Lines.of(form.columns, form)
    if form.rows and form.columns:
        with on_device_of(x):
            config = config or form.tile_for("statistics" if kept is None else "kept statistics")
            _swept(form, own, rows, columns, kept, config, stack, workspace_bytes)
    return rows.lse, columns.lse


class _Lines(NamedTuple):
    """What is known of rows or columns: the result, what of it is suspect, what the merge carries between bands."""

    lse: torch.Tensor
    suspect: torch.Tensor
    state: torch.Tensor

    @classmethod
    def of(cls, count: int, form: Form) -> _Lines:
        lse = torch.full((count,), -torch.inf, dtype=torch.float32, device=form.x.device)
        return cls(lse, torch.empty_like(lse, dtype=torch.int8), lse.new_empty(3, count))

    def band(self, start: int, stop: int) -> _Lines:
        """Some consecutive rows."""
        return _Lines(self.lse[start:stop], self.suspect[start:stop], self.state[:, start:stop])


def _swept(
    form: Form,
    own: Own,
    rows: _Lines,
    columns: _Lines,
    kept: torch.Tensor | None,
    config: TileConfig,
    stack: int | None,
    workspace_bytes: int,
) -> None:
    """Sweep band after band, merge, repair."""
    stack = stack or _stack(form, config)
    height = _band_rows(form, config, stack, workspace_bytes)
    for start in range(0, form.rows, height):
        stop = min(start + height, form.rows)
        kept_band = None if kept is None else kept[start:stop]
        across, down = _sweep(form.band(start, stop), own.band(start, stop), kept_band, config, stack)
        _merge(across, rows.band(start, stop), first=True, last=True)
        _merge(down, columns, first=start == 0, last=stop == form.rows)
    _repair(form, own, rows)
    _repair(form.transposed(), own.transposed(), columns)


def _stack(form: Form, config: TileConfig) -> int:
    (tiles,) = form.tile_grid(config)
    return max(1, min(MOST_STACKED, tiles // FEWEST_PROGRAMS))


def _band_rows(form: Form, config: TileConfig, stack: int, workspace_bytes: int) -> int:
    """Rows per band: whole groups of stacks whose partial sums (fp32) fit the workspace, at least one group."""
    group_rows = config.block_m * stack * config.group
    group_bytes = 4 * (group_rows * triton.cdiv(form.columns, config.block_n) + config.group * form.columns)
    return min(form.rows, group_rows * max(1, workspace_bytes // group_bytes))


class _Partials(NamedTuple):
    """Sums [tiles, lines], offsets with their strides along blocks of lines and along tiles, lines in a block."""

    sums: torch.Tensor
    offsets: torch.Tensor
    strides: tuple[int, int]
    block: int


def _sweep(
    form: Form, own: Own, kept: torch.Tensor | None, config: TileConfig, stack: int
) -> tuple[_Partials, _Partials]:
    """Partial sums of all tiles along rows, and down the columns of each stack of tiles."""
    row_tiles, column_tiles = triton.cdiv(form.rows, config.block_m), triton.cdiv(form.columns, config.block_n)
    stacks = triton.cdiv(row_tiles, stack)
    sums = functools.partial(torch.empty, dtype=torch.float32, device=form.x.device)
    across = _Partials(
        sums((column_tiles, form.rows)), sums((row_tiles, column_tiles)), (column_tiles, 1), config.block_m
    )
    down = _Partials(sums((stacks, form.columns)), sums((stacks, column_tiles)), (1, column_tiles), config.block_n)
    tile_statistics[(stacks * column_tiles,)](
        *form.arguments(),
        *own.arguments(form),
        stack,
        form.x.shape[1],
        across.sums,
        across.offsets,
        down.sums,
        down.offsets,
        down.offsets if kept is None else kept,  # not read then
        0 if kept is None else kept.stride(0),
        **form.constants(config),
        GROUP=config.group,
        OWN=own.kind,
        FOLD=rows_of_a_thread(form.x.device, form.x.dtype),
        KEEP=kept is not None,
    )
    return across, down


def _merge(partials: _Partials, out: _Lines, *, first: bool, last: bool) -> None:
    """Fold partial sums into log-sum-exps and suspect flags; the state carries columns from band to band."""
    tiles, lines = partials.sums.shape
    merge_partials[(triton.cdiv(lines, MERGE_BLOCK),)](
        partials.sums,
        partials.offsets,
        *out.state,
        out.lse,
        out.suspect,
        lines,
        tiles,
        *partials.strides,
        LINES_PER_OFFSET=partials.block,
        BLOCK=MERGE_BLOCK,
        FIRST=first,
        LAST=last,
        num_warps=4,
        **FUSION,
    )


def _repair(form: Form, own: Own, out: _Lines) -> None:
    """Compute the suspect rows again, each relative to its own largest logit."""
    config = form.tile_for("repair")
    whole = triton.cdiv(form.columns, config.block_n)
    sweep_rows(form, own, config, whole, out.lse, suspect=out.suspect)
