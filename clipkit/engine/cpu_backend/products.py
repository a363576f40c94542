# SPDX-License-Identifier: Apache-2.0
"""The three matrix products of a sweep, one tile at a time, accumulated in fp32 and never rounded to 16 bit.

A method may be called from several threads at once, for tiles that share neither rows nor columns.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clipkit.engine.cpu_backend.compiled import compiled
from clipkit.engine.precision import widen


class Products(Protocol):
    """Products with two towers x [n, d] and y [m, d]; `rows` and `columns` cut out a tile of x yᵀ."""

    def tile(self, rows: slice, columns: slice, out: Tensor) -> None:
        """`out` = x[rows] y[columns]ᵀ, contiguous fp32, not yet scaled."""

    def add_to_rows(self, weights: Tensor, rows: slice, columns: slice, out: Tensor) -> None:
        """`out`[rows] += weights y[columns], for fp32 weights of the tile and out [n, d] in fp32."""

    def add_to_columns(self, weights: Tensor, rows: slice, columns: slice, out: Tensor) -> None:
        """`out`[columns] += weightsᵀ x[rows], out [m, d] in fp32."""


@dataclass(frozen=True)
class Fp32Products:
    """By torch's BLAS in fp32. 16-bit towers were widened, which is exact."""

    x: Tensor
    y: Tensor

    def tile(self, rows: slice, columns: slice, out: Tensor) -> None:
        """See `Products`."""
        torch.mm(self.x[rows], self.y[columns].T, out=out)

    def add_to_rows(self, weights: Tensor, rows: slice, columns: slice, out: Tensor) -> None:
        """See `Products`."""
        out[rows].addmm_(weights, self.y[columns])

    def add_to_columns(self, weights: Tensor, rows: slice, columns: slice, out: Tensor) -> None:
        """See `Products`."""
        out[columns].addmm_(weights.T, self.x[rows])


_PANEL = 32
"""Lines of a packed panel and of its blocks (csrc/cpu/bf16_kernels.h); tiles begin at multiples of it."""


class Bf16Products:
    """By AMX or AVX512-BF16 instructions: bf16 towers multiplied as they are, weights rounded to bf16 as they are used.

    torch has no bf16 product with an fp32 result on CPU. Its nearest, oneDNN told to multiply fp32 copies as bf16,
    reaches half of the library's bf16 rate; this one by AMX reaches 0.9 to 1.2 of it (512 x 2048 x 512, one core), by
    AVX512-BF16 a little over the fp32 rate. Towers are packed once, at 2 bytes a number. Subnormal numbers count as
    zero, as both instructions have it.
    """

    def __init__(self, x: Tensor, y: Tensor, kernel: str) -> None:
        """`kernel` is one of `compiled().bf16_kernels()`."""
        self._x, self._y = (with_contiguous_rows(tower) for tower in (x, y))
        self._kernel = kernel
        self._packed: dict[tuple[bool, bool], Tensor] = {}
        self._packing = threading.Lock()

    def tile(self, rows: slice, columns: slice, out: Tensor) -> None:
        """See `Products`; `columns` begin at a multiple of 32."""
        x, y = self._x[rows], self._panels(self._y, columns_are_lines=False)[columns.start // _PANEL :]
        result = (out.shape[1], out.data_ptr(), out.stride(0))
        compiled().bf16_tile(self._kernel, *matrix_of(x), y.data_ptr(), *result, torch.get_num_threads())

    def add_to_rows(self, weights: Tensor, rows: slice, columns: slice, out: Tensor) -> None:
        """See `Products`; `columns` begin at a multiple of 32."""
        self._add(weights, False, self._y, columns, out[rows])

    def add_to_columns(self, weights: Tensor, rows: slice, columns: slice, out: Tensor) -> None:
        """See `Products`; `rows` begin at a multiple of 32."""
        self._add(weights, True, self._x, rows, out[columns])

    def add_positives(self, column: Tensor, weight: Tensor, g_y: Tensor | None, gt_x: Tensor | None) -> None:
        """Of row i with column_i, each [n]: g_y_i += weight_i y_column, gt_x_column += weight_i x_i, not rounded."""
        row = torch.arange(len(column))
        for source, target, tower, out in ((column, row, self._y, g_y), (row, column, self._x, gt_x)):
            if out is not None:
                lines = (len(row), source.data_ptr(), target.data_ptr(), weight.data_ptr(), out.data_ptr())
                compiled().bf16_add_lines(*matrix_of(tower), *lines)

    def _add(self, weights: Tensor, transposed: bool, tower: Tensor, contracted: slice, out: Tensor) -> None:
        packed = self._panels(tower, columns_are_lines=True)[:, contracted.start // _PANEL :]
        right = (packed.data_ptr(), packed.stride(0) * packed.element_size())
        result = (out.shape[1], out.data_ptr(), out.stride(0))
        compiled().bf16_add(self._kernel, *matrix_of(weights), transposed, *right, *result, torch.get_num_threads())

    def _panels(self, tower: Tensor, *, columns_are_lines: bool) -> Tensor:
        """Of a whole tower, packed when first asked for; other threads wait rather than pack it too."""
        key = (tower is self._x, columns_are_lines)
        with self._packing:
            if key not in self._packed:
                self._packed[key] = _packed(tower, columns_are_lines=columns_are_lines)
            return self._packed[key]


def with_contiguous_rows(tower: Tensor) -> Tensor:
    """A tower as csrc/cpu/bf16_products.h takes it: rows apart from one another, their numbers side by side."""
    return tower if tower.stride(1) == 1 and tower.stride(0) >= tower.shape[1] else tower.contiguous()


def matrix_of(tower: Tensor) -> tuple[int, int, int, int]:
    """(address, row stride, rows, columns) for the compiled part."""
    return tower.data_ptr(), tower.stride(0), *tower.shape


def _packed(tower: Tensor, *, columns_are_lines: bool) -> Tensor:
    """Rows or columns of a tower as lines of panels, [panels, blocks, 1024]: a block is 32 lines by 32 numbers."""
    rows, columns = (-(-size // _PANEL) for size in tower.shape)
    shape = (columns, rows) if columns_are_lines else (rows, columns)
    packed = tower.new_empty(*shape, _PANEL * _PANEL)
    compiled().bf16_pack(columns_are_lines, *matrix_of(tower), packed.data_ptr(), torch.get_num_threads())
    return packed


def products_of(x: Tensor, y: Tensor) -> Products:
    """The fastest products for towers of this type on this machine."""
    kernel = bf16_kernel(x.dtype)
    return Bf16Products(x, y, kernel) if kernel else Fp32Products(widen(x), widen(y))


def bf16_kernel(dtype: torch.dtype) -> str | None:
    """What multiplies towers of this type as they are here, "amx" or "avx512_bf16"; None where they are widened."""
    if dtype != torch.bfloat16:  # fp16 numbers are not exact in bf16
        return None
    kernels = compiled().bf16_kernels()
    return kernels[0] if kernels else None
