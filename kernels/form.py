# SPDX-License-Identifier: Apache-2.0
"""The operands of a sweep, and what every launch over them has in common."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import triton

from .config import TileConfig, tile_for

# Triton 3.10 turns contraction to FMA off unless asked: SASS, speed and rounding must not change with an upgrade.
FUSION = {"enable_fp_fusion": True}


class Form(NamedTuple):
    """S = scale * X Yᵀ: x [rows, width] and y [columns, width] of one dtype with unit stride along the width, scale [1]
    fp32 on their device. `precision` of the products of fp32 inputs: "ieee", "tf32x3" (both exact to fp32's rounding)
    or "tf32".
    """

    x: torch.Tensor
    y: torch.Tensor
    scale: torch.Tensor
    precision: str = "ieee"

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor, scale: float | torch.Tensor, precision: str = "ieee") -> Form:
        """Towers as they come; one whose rows are scattered is copied. The caller has checked shapes and devices."""
        assert x.shape[1] == y.shape[1], "x and y must be equally wide"
        assert x.dtype == y.dtype, "x and y must have one dtype"
        return cls(unit_inner_stride(x), unit_inner_stride(y), device_scalar(scale, x.device), precision)

    @property
    def rows(self) -> int:
        """How many rows S has."""
        return self.x.shape[0]

    @property
    def columns(self) -> int:
        """How many columns S has."""
        return self.y.shape[0]

    def band(self, start: int, stop: int) -> Form:
        """Some consecutive rows of S."""
        return self._replace(x=self.x[start:stop])

    def transposed(self) -> Form:
        """S the other way round: columns become rows."""
        return self._replace(x=self.y, y=self.x)

    def tile_for(self, kind: str) -> TileConfig:
        """The tile that a kind of kernel has for these operands."""
        return tile_for(kind, self.x.device, self.x.dtype, self.x.shape[1], aligned=self.aligned)

    @property
    def aligned(self) -> bool:
        """Whether triton knows that every row of features begins on 16 bytes: it asks whether widths, strides and
        addresses are multiples of 16.
        """
        numbers = [self.x.shape[1]] + [n for t in (self.x, self.y) for n in (t.stride(0), t.data_ptr())]
        return all(number % 16 == 0 for number in numbers)

    def arguments(self) -> tuple[Any, ...]:
        """(x, y, scale, rows, columns, x_stride, y_stride): how the argument list of every sweep kernel begins."""
        return self.x, self.y, self.scale, self.rows, self.columns, self.x.stride(0), self.y.stride(0)

    def constants(self, config: TileConfig) -> dict[str, Any]:
        """WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION and the launch options."""
        return {
            "WIDTH": self.x.shape[1],
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "PRECISION": self.precision,
            "num_warps": config.warps,
            "num_stages": config.stages,
            **FUSION,
        }

    def fills(self, config: TileConfig) -> bool:
        """Whether no tile reaches past an edge."""
        return self.rows % config.block_m == 0 and self.columns % config.block_n == 0

    def tile_grid(self, config: TileConfig) -> tuple[int]:
        """One program per tile."""
        return (triton.cdiv(self.rows, config.block_m) * triton.cdiv(self.columns, config.block_n),)


class Own(NamedTuple):
    """Each row's own pair, which kernels leave out or weigh apart: in column row + diagonal (`kind` "diagonal"), in
    labels[row] ("labels", int64 [rows]), or nowhere ("none").
    """

    kind: str = "none"
    diagonal: int = 0
    labels: torch.Tensor | None = None

    def band(self, start: int, stop: int) -> Own:
        """Those of some consecutive rows."""
        return self._replace(
            diagonal=self.diagonal + start, labels=None if self.labels is None else self.labels[start:stop]
        )

    def transposed(self) -> Own:
        """The same pairs seen from the columns."""
        assert self.labels is None, "a column may be the label of many rows"
        return self._replace(diagonal=-self.diagonal)

    def arguments(self, form: Form) -> tuple[int, torch.Tensor]:
        """(diagonal, labels) for a kernel; a tensor that it does not read stands in for labels that are not there."""
        return self.diagonal, form.scale if self.labels is None else self.labels


def unit_inner_stride(features: torch.Tensor) -> torch.Tensor:
    """The features themselves, or a copy where they do not lie row by row."""
    return features if features.stride(-1) == 1 else features.contiguous()


def device_scalar(value: float | torch.Tensor, device: torch.device) -> torch.Tensor:
    """One fp32 element on the device, without a host synchronisation when it is there already."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device=device, dtype=torch.float32).reshape(1)
    return torch.full((1,), value, dtype=torch.float32, device=device)


def on_device_of(features: torch.Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the one the features are on."""
    return torch.cuda.device(features.device) if features.is_cuda else contextlib.nullcontext()
