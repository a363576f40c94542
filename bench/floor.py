# SPDX-License-Identifier: Apache-2.0
"""The floor of a case: the matrix products needed by any method that stores no N x N matrix."""

from __future__ import annotations

import torch

from bench.cases import Case, Tensors

_TILE_ELEMENTS = {"cpu": 1 << 25, "cuda": 1 << 29}
"""Of a tile of S: a library product needs hundreds of rows to be at its best, on a card thousands."""


def tile_rows(case: Case, device: str) -> int:
    """Rows of a tile."""
    most = 1024 if device == "cpu" else 8192
    return max(256, min(most, _TILE_ELEMENTS[device] // case.rows))


def run_products(case: Case, tensors: Tensors) -> None:
    """The products of `case.products`, a tile of rows at a time, in the case's dtype."""
    rows, columns = tensors.image.detach(), tensors.text.detach()
    height = tile_rows(case, rows.device.type)
    for chunk in rows.split(height):
        tile = chunk @ columns.T
        for _ in range(case.products.similar - 1):
            torch.mm(chunk, columns.T, out=tile)
        for _ in range(case.products.left):
            _ = tile @ columns
        for _ in range(case.products.right):
            _ = tile.T @ chunk
