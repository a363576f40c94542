# SPDX-License-Identifier: Apache-2.0
"""Tiles in a buffer whose rows are longer than the tile, and the compiled passes called with tensors."""

import torch

SHAPES = [(1, 1), (1, 130), (63, 65), (127, 2), (128, 256), (130, 127), (5, 16)]


def random_tile(rows, columns, *, padding=0, spread=1.0, seed=0):
    """Products; what lies beside the tile is NaN."""
    generator = torch.Generator().manual_seed(seed)
    buffer = torch.full((rows, columns + padding), float("nan"))
    buffer[:, :columns] = torch.randn(rows, columns, generator=generator) * spread
    return buffer


def exact_logits(buffer, columns, scale):
    return buffer[:, :columns].double() * float(torch.tensor(scale))


class Passes:
    """The passes of one instruction set, on tensors; None leaves an argument out."""

    def __init__(self, native, name):
        self.native = native
        self.name = name

    def tile(self, buffer, columns, scale):
        return self.native.Tile(buffer.data_ptr(), buffer.stride(0), buffer.shape[0], columns, scale)

    def call(self, name, buffer, columns, scale, *arguments):
        """Numbers go as they are, tensors as their addresses."""
        plain = [0 if a is None else a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
        return getattr(self.native, name)(self.tile(buffer, columns, scale), *plain)

    def log_sums(self, buffer, columns, scale, *, positive=None, first=0, running=None, rows_only=False):
        """Log-sum-exps of rows and columns in float64, merged into running ones where given, and positives' logits."""
        rows = buffer.shape[0]
        running = running or [part for n in (rows, columns) for part in (torch.full((n,), -torch.inf), torch.zeros(n))]
        logits = torch.full((rows,), float("nan"))
        down = (None, None) if rows_only else running[2:]
        self.call("tile_statistics", buffer, columns, scale, positive, first, logits, *running[:2], *down)
        row_offset, row_sum, column_offset, column_sum = (part.double() for part in running)
        return row_offset + row_sum.log(), column_offset + column_sum.log(), logits
