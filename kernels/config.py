# SPDX-License-Identifier: Apache-2.0
"""Which tile a kernel gets: one look-up by card, kernel kind, input type and feature width.

The rows are in tile_table.py, what a tile costs is in accounting.py, and autotune.py measures better rows on a card.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TileConfig:
    """One launch configuration: tile sizes in elements, `group` row tiles share column tiles while they are in L2."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    group: int = 8


@dataclass(frozen=True)
class Row:
    """One row of the table: the tile for a kernel kind on cards of at least `capability` (major * 10 + minor), inputs
    of `bits` bits an element and features up to `widest` wide.
    """

    capability: int
    kind: str
    bits: int
    widest: int
    tile: TileConfig


# Accumulators (fp32 tiles of BLOCK_M x BLOCK_N) that a program of each kind holds at once. Statistics that keep the
# products, and those of anchors, which weigh them, hold them beside the logits.
KINDS: dict[str, int] = {
    "statistics": 1,
    "kept statistics": 2,
    "rows": 1,
    "kept rows": 2,
    "anchors": 2,
    "gradient": 1,
    "one-sided gradient": 1,
    "scaled gradient": 1,
    "sigmoid": 1,
    "pair": 2,
    "curvature": 3,
    "repair": 1,
}
# The interpreter runs programs one after another: small tiles give small tests their tile boundaries.
INTERPRETER_CONFIG = TileConfig(64, 64, 32, warps=4, stages=1, group=2)


def tile_for(kind: str, device: torch.device, dtype: torch.dtype, width: int, *, aligned: bool = True) -> TileConfig:
    """The tile of a kernel kind on a device, for inputs of a dtype and features `width` wide; `aligned` as in
    `best_tile`.
    """
    capability = capability_of(device)
    return INTERPRETER_CONFIG if capability is None else best_tile(kind, capability, 8 * dtype.itemsize, width, aligned)


def best_tile(kind: str, capability: int, bits: int, width: int, aligned: bool) -> TileConfig:
    """The tile of the best row; where not all rows of features are `aligned` to 16 elements, the one for such."""
    from .tile_table import UNALIGNED

    unaligned = None if aligned else UNALIGNED.get((kind, bits))
    return unaligned or best_row(kind, capability, bits, width).tile


def best_row(kind: str, capability: int, bits: int, width: int) -> Row:
    """The row of the newest architecture not above the card's, and of these the narrowest that holds the width."""
    from .tile_table import TABLE

    rows = [row for row in TABLE if (row.kind, row.bits) == (kind, bits) and row.widest >= width]
    served = max((row.capability for row in rows if row.capability <= capability), default=rows[0].capability)
    return min((row for row in rows if row.capability == served), key=lambda row: row.widest)


def rows_of_a_thread(device: torch.device, dtype: torch.dtype) -> int:
    """Rows of a 16-bit tile that one thread holds and can add up without asking another: four in the fragments of mma
    and wgmma (eight apart, and half a tile apart), one in what sm_100 reads from its tensor memory or in plain fp32.
    """
    capability = capability_of(device)
    if capability is None:
        return 4  # the interpreter: take the longer way
    return 4 if dtype.itemsize == 2 and not 100 <= capability < 120 else 1


def capability_of(device: torch.device) -> int | None:
    """A card's compute capability as major * 10 + minor; None where the interpreter runs the kernels."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor
