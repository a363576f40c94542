# SPDX-License-Identifier: Apache-2.0
"""G Y and Gᵀ X for a matrix G of weights that exists a wave of rows at a time, in a bounded workspace.

At d >= 512 an fp32 accumulator [tile rows, d] does not fit a multiprocessor, so no kernel of ours multiplies by G: a
kernel writes G for as many rows as the workspace holds, and the library multiplies it. Waves follow each other in
order on one stream: the same bits every time.

S is computed again for G unless the caller kept it; kept.py says when that pays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import triton

from .form import Form

DEFAULT_WORKSPACE_BYTES = 256 << 20
"""4096 rows of G in 16 bit at 32768 columns. Each wave reads and writes all of the fp32 [columns, d] accumulator: at
4096 rows that costs 7 % of the two products at d = 512, at 1024 rows 26 %."""

_HALF_UNIT = 2.0**14


def weight_unit(dtype: torch.dtype) -> float:
    """What a kernel multiplies weights by before it rounds them to the workspace's dtype, the dtype of the features.

    fp16 has no normal numbers below 6e-5, and at a hundred thousand columns most weights are smaller. Their size is at
    most 2, so 2**14 times as much still fits (65504), and what falls below the normal numbers is then under 4e-9. Under
    4e-12 a weight is zero: a batch whose losses are all smaller has no gradient in fp16.
    """
    return _HALF_UNIT if dtype == torch.float16 else 1.0


def wave_rows(
    form: Form, *, block_rows: int, workspace_bytes: int = DEFAULT_WORKSPACE_BYTES, matrices: int = 1
) -> Iterator[slice]:
    """Consecutive slices of rows that cover the form, of one height but the last, such that `matrices` weights [rows,
    columns] fit `workspace_bytes` (but at least block_rows high).
    """
    if form.rows == 0 or form.columns == 0:
        return
    most = max(block_rows, workspace_bytes // (matrices * pitch(form.columns, form.x.dtype) * form.x.dtype.itemsize))
    count = triton.cdiv(form.rows, most)
    height = triton.cdiv(triton.cdiv(form.rows, count), block_rows) * block_rows
    for start in range(0, form.rows, height):
        yield slice(start, min(start + height, form.rows))


def pitch(columns: int, dtype: torch.dtype) -> int:
    """Elements from one row of a matrix to the next. Rows begin on 128 bytes: what the library's fastest products and
    wide stores ask for, whatever the number of columns.
    """
    return triton.cdiv(columns * dtype.itemsize, 128) * 128 // dtype.itemsize


def waves(
    form: Form, *, block_rows: int, workspace_bytes: int = DEFAULT_WORKSPACE_BYTES, matrices: int = 1
) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """The slices of `wave_rows`, each with its uninitialised weights [rows, columns] in the features' dtype, unit
    stride along the columns. The same memory serves every wave. What lies between the last column and the next row may
    be written.
    """
    slices = list(wave_rows(form, block_rows=block_rows, workspace_bytes=workspace_bytes, matrices=matrices))
    height = max((rows.stop - rows.start for rows in slices), default=0)
    memory = form.x.new_empty((matrices, height, pitch(form.columns, form.x.dtype)))
    for rows in slices:
        yield rows, [matrix[: rows.stop - rows.start, : form.columns] for matrix in memory]


def wave_products(
    form: Form,
    write_weights: Callable[[slice, torch.Tensor], None],
    *,
    want_x: bool,
    want_y: bool,
    block_rows: int,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(G Y [rows, d], Gᵀ X [columns, d]) in fp32, None where not wanted.

    `write_weights(rows, weights)` fills weights [rows, columns] with weight_unit(dtype) times the rows of G.
    """
    g_y = torch.zeros_like(form.x, dtype=torch.float32) if want_x else None
    gt_x = torch.zeros_like(form.y, dtype=torch.float32) if want_y else None
    if not (want_x or want_y):
        return g_y, gt_x
    for rows, (weights,) in waves(form, block_rows=block_rows, workspace_bytes=workspace_bytes):
        write_weights(rows, weights)
        if g_y is not None:
            add_product(g_y[rows], weights, form.y)
        if gt_x is not None:
            add_product(gt_x, weights.T, form.x[rows])
    return g_y, gt_x


def add_product(out: torch.Tensor, weights: torch.Tensor, features: torch.Tensor) -> None:
    """out += weights @ features / weight_unit: fp32 out, accumulated in fp32, operands of one dtype never widened where
    the library can help it.
    """
    alpha = 1.0 / weight_unit(weights.dtype)
    if weights.dtype == torch.float32:
        out.addmm_(weights, features, alpha=alpha)
    elif not weights.is_cuda:
        out.addmm_(weights.float(), features.float(), alpha=alpha)
    elif _adds_to_wide(weights.device, weights.dtype):
        torch.addmm(out, weights, features, out_dtype=torch.float32, alpha=alpha, out=out)
    else:
        out.add_(torch.mm(weights, features, out_dtype=torch.float32), alpha=alpha)


@functools.cache
def _adds_to_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch adds a product of 16-bit matrices to an fp32 one in place. Early versions of out_dtype wanted
    all three alike; they say so before anything is launched.
    """
    narrow, wide = torch.zeros(8, 8, device=device, dtype=dtype), torch.zeros(8, 8, device=device)
    try:
        torch.addmm(wide, narrow, narrow, out_dtype=torch.float32, out=wide)
    except (RuntimeError, TypeError):
        return False
    return True
