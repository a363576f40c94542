# SPDX-License-Identifier: Apache-2.0
"""`log_sum_exps` by csrc/cuda/hopper_statistics.cu: the launches around the sweep. For 16-bit features on sm_90; plain
torch serves the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.engine import torch_backend
from clipkit.engine.cuda_backend.finaliser import Suspects, carry_partials, merge_partials, repair_lines
from clipkit.engine.cuda_backend.library import native, stream_for
from clipkit.engine.workspace import Workspace

WORKSPACE_BYTES = 64 << 20
_TILE_COLUMNS = 256
_WARP_ROWS = 16
_BAND_ROWS = 2048
"""Rows per band come in such steps: eight tiles of both blocks of a cluster, the longest item."""


class Form(NamedTuple):
    """S = scale * X Yᵀ without the pairs (i, diagonal + i), in the layout that bulk copies read: contiguous, rows a
    multiple of 16 bytes long; scale [1] fp32."""

    x: Tensor
    y: Tensor
    scale: Tensor
    diagonal: int | None


class Partials(NamedTuple):
    """Sums of exp(s - offset) of some rows of S, and the offsets: row sums [column tiles, n], row offsets
    [n / 16, column tiles], column sums [strips, m], column offsets [strips, column tiles]."""

    row_sums: Tensor
    row_offsets: Tensor
    column_sums: Tensor
    column_offsets: Tensor


Launch = Callable[[Form, range, int, Partials], None]
"""(form, rows, pairs_per_item, partials to fill): the sweep over some rows of S, the form's diagonal meant for all."""


def log_sum_exps(
    x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None, workspace: Workspace | None = None
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.sweeps.log_sum_exps`; nothing is kept."""
    clusters = _clusters(x)
    if clusters == 0 or x.dtype not in (torch.float16, torch.bfloat16):
        return torch_backend.log_sum_exps(x, y, scale, diagonal=diagonal)
    return sweep_log_sum_exps(x, y, scale, diagonal=diagonal, clusters=clusters, launch=_launch)


def sweep_log_sum_exps(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    *,
    diagonal: int | None,
    clusters: int,
    launch: Launch,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> tuple[Tensor, Tensor]:
    """Row and column LSEs, fp32. Partial sums take at most about `workspace_bytes`: larger problems run in bands of
    rows, each merged before the next. The host learns nothing of the results."""
    rows, columns = x.shape[0], y.shape[0]
    if rows == 0 or columns == 0:
        return x.new_full((rows,), -torch.inf, dtype=torch.float32), x.new_full(
            (columns,), -torch.inf, dtype=torch.float32
        )
    form = Form(_pitched(x), _pitched(y), scale.detach().to(x.device, torch.float32).reshape(1), diagonal)
    transposed = Form(form.y, form.x, form.scale, None if diagonal is None else -diagonal)
    row_lse = []
    state = None

    def swept(band: range) -> dict[str, Any]:
        """Settles the band's rows; what the finaliser takes for its columns. No name outside holds the partials:
        the next band gets their memory."""
        partials = _sweep(form, band, clusters, launch)
        tiles = partials.row_offsets.shape[1]
        merged, suspects = merge_partials(*partials[:2], line_block=_WARP_ROWS, offset_strides=(tiles, 1))
        _repair(form, band, merged, suspects)
        row_lse.append(merged)
        sums, offsets = partials[2:]
        return {"sums": sums, "offsets": offsets, "line_block": _TILE_COLUMNS, "offset_strides": (1, tiles)}

    *earlier, last = _bands(rows, columns, workspace_bytes)
    for band in earlier:
        state = carry_partials(**swept(band), state=state)
    column_lse, suspects = merge_partials(**swept(last), state=state)
    _repair(transposed, range(columns), column_lse, suspects)
    return torch.cat(row_lse), column_lse


def _clusters(like: Tensor) -> int:
    """How many clusters of the sweep the tensor's card runs at once; 0 where it cannot run it."""
    if like.device.type != "cuda":
        return 0
    with torch.cuda.device(like.device):
        return int(native().hopper_clusters())


def _pitched(features: Tensor) -> Tensor:
    """Contiguous, rows a multiple of 16 bytes (zeros behind the width change no product), at an aligned address."""
    step, width = native().hopper_pitch_elements, features.shape[1]
    pitch = max(step, -(-width // step) * step)
    features = (F.pad(features, (0, pitch - width)) if pitch > width else features).contiguous()
    return features if features.data_ptr() % 16 == 0 else features.clone()


def _bands(rows: int, columns: int, workspace_bytes: int) -> list[range]:
    """The rows in bands whose partials fit, at least one step each. Per step: a sum for each row and an offset for each
    16, both per tile of columns; 8 strips of columns where the items are half as long as they may be."""
    tiles = -(-columns // _TILE_COLUMNS)
    step_bytes = 4 * (tiles * (_BAND_ROWS + _BAND_ROWS // _WARP_ROWS) + 8 * (columns + tiles))
    band = _BAND_ROWS * max(1, workspace_bytes // step_bytes)
    return [range(start, min(start + band, rows)) for start in range(0, rows, band)]


def _sweep(form: Form, rows: range, clusters: int, launch: Launch) -> Partials:
    columns = form.y.shape[0]
    pairs_per_item, tiles, row_groups, strips = native().hopper_plan(len(rows), columns, clusters)
    shapes = ((tiles, len(rows)), (row_groups, tiles), (strips, columns), (strips, tiles))
    partials = Partials(*(torch.empty(shape, dtype=torch.float32, device=form.x.device) for shape in shapes))
    launch(form, rows, pairs_per_item, partials)
    return partials


def _launch(form: Form, rows: range, pairs_per_item: int, partials: Partials) -> None:
    """The sweep on the card."""
    x, y = form.x, form.y
    with stream_for(x) as stream:
        native().hopper_sweep(
            str(x.dtype).removeprefix("torch."),
            x.data_ptr(),
            y.data_ptr(),
            x.shape[0],
            y.shape[0],
            x.shape[1],
            x.stride(0),
            y.stride(0),
            form.scale.data_ptr(),
            rows.start,
            len(rows),
            diagonal_of(form, rows),
            pairs_per_item,
            *(tensor.data_ptr() for tensor in partials),
            stream,
        )


def diagonal_of(form: Form, rows: range) -> int | None:
    """The form's diagonal counted from the first of some rows; None where it passes them by."""
    if form.diagonal is None or not -len(rows) < form.diagonal + rows.start < form.y.shape[0]:
        return None
    return form.diagonal + rows.start


def _repair(form: Form, rows: range, log_sum: Tensor, suspects: Suspects) -> None:
    x = form.x[rows.start : rows.stop]
    repair_lines(x, form.y, form.scale, log_sum, suspects, diagonal=diagonal_of(form, rows))
