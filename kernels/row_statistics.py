# SPDX-License-Identifier: Apache-2.0
"""Log-sum-exps of rows alone, and means under their softmax: the launch code around kernels/row_sweep.py."""

from __future__ import annotations

import torch
import triton

from .config import TileConfig
from .form import Form, Own, on_device_of
from .row_sweep import row_sweep

FEWEST_PROGRAMS = 2048
"""A card wants sixteen programs a multiprocessor or so, or the last ones idle it."""

REPAIR_REGISTERS = 128
"""Left to itself the assembler gives the repair 72 to 96 registers and puts two values into local memory, for the sake
of more blocks on a multiprocessor than it ever has."""


def row_lse(
    form: Form, own: Own, *, kept: torch.Tensor | None = None, config: TileConfig | None = None
) -> torch.Tensor:
    """Row LSEs [N], fp32, of S without each row's own pair; -inf where nothing is left. The products <x_i, y_j> are
    left in `kept` [N, M] fp32 (see kept.py) if given.
    """
    return _swept(form, own, None, False, config, None, kept)[0]


def anchor_statistics(
    x: torch.Tensor,
    y: torch.Tensor,
    scale: torch.Tensor,
    *,
    diagonal: int | None,
    precision: str = "ieee",
    config: TileConfig | None = None,
    parts: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(LSE [N] of scale_i <x_i, y_j> over the columns, mean [N] of <x_i, y_j> under that row's softmax), fp32. `scale`
    is 0-D or [N]. With `diagonal` the pairs (i, diagonal + i) are left out of both; -inf and 0 where nothing is left.

    Each column range that programs of their own walk is one of `parts`: together they take 8 bytes a row and part, at
    most 2 MiB and two numbers a row.
    """
    own = Own() if diagonal is None else Own("diagonal", diagonal)
    if scale.dim() == 0:
        return _swept(Form.of(x, y, scale, precision), own, None, True, config, parts, None)
    return _swept(Form.of(x, y, 1.0, precision), own, scale.float().contiguous(), True, config, parts, None)


def _swept(
    form: Form,
    own: Own,
    row_scale: torch.Tensor | None,
    want_means: bool,
    config: TileConfig | None,
    parts: int | None,
    kept: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(LSE, mean) of every row; the means are not written unless wanted."""
    if form.rows == 0 or form.columns == 0:
        lse = torch.full((form.rows,), -torch.inf, dtype=torch.float32, device=form.x.device)
        return lse, torch.zeros_like(lse)
    config = config or form.tile_for("anchors" if want_means else "rows" if kept is None else "kept rows")
    column_tiles = triton.cdiv(form.columns, config.block_n)
    parts = parts or triton.cdiv(FEWEST_PROGRAMS, triton.cdiv(form.rows, config.block_m))
    stretch = triton.cdiv(column_tiles, min(parts, column_tiles))
    parts = triton.cdiv(column_tiles, stretch)
    log_sums = torch.empty((parts, form.rows), dtype=torch.float32, device=form.x.device)
    means = torch.empty_like(log_sums) if want_means else log_sums
    with on_device_of(form.x):
        written = means if want_means else None
        sweep_rows(form, own, config, stretch, log_sums, means=written, row_scale=row_scale, kept=kept)
    return _together(log_sums, means)


def sweep_rows(
    form: Form,
    own: Own,
    config: TileConfig,
    stretch: int,
    log_sums: torch.Tensor,
    *,
    means: torch.Tensor | None = None,
    row_scale: torch.Tensor | None = None,
    suspect: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
) -> None:
    """Launch row_sweep (see there) for whole rows, `stretch` column tiles a program."""
    parts = triton.cdiv(triton.cdiv(form.columns, config.block_n), stretch)
    limit = {} if suspect is None else {"maxnreg": REPAIR_REGISTERS}
    row_sweep[(parts * triton.cdiv(form.rows, config.block_m),)](
        *form.arguments(),
        *own.arguments(form),
        # A tensor that no branch of the kernel reads stands in for what is absent.
        log_sums if row_scale is None else row_scale,
        log_sums if suspect is None else suspect,
        stretch,
        form.x.shape[1],
        log_sums,
        log_sums if means is None else means,
        log_sums if kept is None else kept,
        0 if kept is None else kept.stride(0),
        **form.constants(config),
        **limit,
        OWN=own.kind,
        SCALED=row_scale is not None,
        SUSPECTS=suspect is not None,
        MEANS=means is not None,
        KEEP=kept is not None,
    )


def _together(log_sums: torch.Tensor, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """LSEs and means [rows] over all parts [parts, rows]. The parts' weights sum to one whatever the rounding of their
    LSEs.
    """
    if len(log_sums) == 1:
        return log_sums[0], means[0]
    lse = torch.logsumexp(log_sums, 0)
    mean = (torch.softmax(log_sums, 0) * means).sum(0)
    return lse, mean.masked_fill_(lse.isneginf(), 0.0)
