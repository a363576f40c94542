# SPDX-License-Identifier: Apache-2.0
"""Per-tile sums of exponentials into log-sum-exps, and the exact repair of lines that an offset may have flushed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.engine.cuda_backend.library import check_tensor, native, stream_for

_PARTIALS = 1 << 22
"""Partial sums of a repair, at most (32 MiB): how finely its columns can be split among blocks."""


class Suspects(NamedTuple):
    """Lines (rows or columns) that lie too far below their tiles' offsets: flags [n] uint8, the same as a list [n]
    int64 in no order, and the list's length [1] int32. All stay on the device."""

    flags: Tensor
    lines: Tensor
    listed: Tensor


def merge_partials(
    sums: Tensor, offsets: Tensor, *, line_block: int, offset_strides: tuple[int, int], state: Tensor | None = None
) -> tuple[Tensor, Suspects]:
    """Log-sum-exps [n] of partial sums [tiles, n] fp32, and the lines that need `repair_lines`.

    Line l of tile t was summed relative to offsets.flatten()[l // line_block * offset_strides[0] +
    t * offset_strides[1]]. `state` is what `carry_partials` made of earlier tiles.
    """
    lines, log_sum = sums.shape[1], sums.new_empty(sums.shape[1])
    suspects = Suspects(
        torch.empty(lines, dtype=torch.uint8, device=sums.device),
        torch.empty(lines, dtype=torch.int64, device=sums.device),
        torch.zeros(1, dtype=torch.int32, device=sums.device),
    )
    outputs = tuple(tensor.data_ptr() for tensor in (log_sum, *suspects))
    _merge(sums, offsets, line_block, offset_strides, outputs, state, None)
    return log_sum, suspects


def carry_partials(
    sums: Tensor, offsets: Tensor, *, line_block: int, offset_strides: tuple[int, int], state: Tensor | None = None
) -> Tensor:
    """What later tiles of the same lines need to know of these and earlier ones, [n, 3]; see `merge_partials`."""
    after = sums.new_empty(sums.shape[1], 3)
    _merge(sums, offsets, line_block, offset_strides, (0, 0, 0, 0), state, after)
    return after


def _merge(
    sums: Tensor,
    offsets: Tensor,
    line_block: int,
    offset_strides: tuple[int, int],
    outputs: tuple[int, ...],
    before: Tensor | None,
    after: Tensor | None,
) -> None:
    check_tensor("sums", sums, sums, dtype=torch.float32, shape=(None, None))
    check_tensor("offsets", offsets, sums, dtype=torch.float32)
    tiles, lines = sums.shape
    if before is not None:
        check_tensor("state", before, sums, dtype=torch.float32, shape=(lines, 3))
    carried = [0 if state is None else state.data_ptr() for state in (before, after)]
    addresses = (sums.data_ptr(), offsets.data_ptr())
    with stream_for(sums) as stream:
        native().merge_partials(*addresses, lines, tiles, line_block, *offset_strides, *outputs, stream, *carried)


def repair_lines(
    x: Tensor, y: Tensor, scale: Tensor, log_sum: Tensor, suspects: Suspects, *, diagonal: int | None = None
) -> None:
    """Overwrite log_sum [n] of the suspect rows of scale * x yᵀ by their exact values; x [n, d], y [m, d], scale [1].

    With `diagonal` the pairs (i, diagonal + i) are left out. Columns are repaired by swapping x and y and negating the
    diagonal. Returns at once on the device when there are none; the host never learns.
    """
    check_tensor("x", x, x, dtype=x.dtype, shape=(None, None))
    check_tensor("y", y, x, dtype=x.dtype, shape=(None, x.shape[1]))
    check_tensor("scale", scale, x, dtype=torch.float32, shape=(1,))
    (lines, width), columns = x.shape, y.shape[0]
    check_tensor("log_sum", log_sum, x, dtype=torch.float32, shape=(lines,))
    splits = max(1, min(32, columns // 1024, _PARTIALS // max(1, lines)))
    partials = torch.empty((lines, splits, 2), dtype=torch.float32, device=x.device)
    with stream_for(x) as stream:
        native().repair_lines(
            str(x.dtype).removeprefix("torch."),
            x.data_ptr(),
            y.data_ptr(),
            width,
            width,
            lines,
            columns,
            width,
            scale.data_ptr(),
            diagonal,
            suspects.lines.data_ptr(),
            suspects.listed.data_ptr(),
            splits,
            partials.data_ptr(),
            log_sum.data_ptr(),
            stream,
        )
