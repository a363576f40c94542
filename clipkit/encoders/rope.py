# SPDX-License-Identifier: Apache-2.0
"""Where a patch lies, as angles by which its queries and keys are turned (Su et al. 2021, "RoFormer"; in two
dimensions: Fang et al. 2023, "EVA-02").
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BASE = 10000.0


class Rotation(NamedTuple):
    """What one forward pass hands to its blocks. An argument, never a module's state: blocks that are recomputed in the
    backward pass, or two passes before one backward, each turn by the angles of their own pass.

    cosines, sines: [grid * grid, head width / 2], fp32 (float64 for float64 weights), a row for each patch, an angle
        for each pair of channels.
    places: int64 [n, tokens - 1], each token's row; None where token t has row t - 1 (the class token has none).
    """

    cosines: Tensor
    sines: Tensor
    places: Tensor | None


def rotation_tables(
    grid: int, grid_of_angles: int, head_width: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """(cosines, sines), each [grid * grid, head_width / 2].

    The patch in row r and column c turns its pair m by r' f_m for the first half of the pairs and by c' f_m for the
    second, where f_m = 10000^(-4m / head_width) and r' = r / grid * grid_of_angles: a finer grid shares the angles of
    the one that the weights were trained on. Made anew in each pass, in float64: a table of some thousand numbers that
    no cast of the model to 16 bit can round, and that a checkpoint need not hold.
    """
    pairs = torch.arange(head_width // 4, device=device, dtype=torch.float64)
    frequencies = _BASE ** (-4.0 / head_width * pairs)
    places = torch.arange(grid, device=device, dtype=torch.float64) * (grid_of_angles / grid)
    along = places[:, None] * frequencies
    rows = along[:, None].expand(grid, grid, -1)
    columns = along[None].expand(grid, grid, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return angles.cos().to(dtype), angles.sin().to(dtype)
