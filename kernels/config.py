# SPDX-License-Identifier: Apache-2.0
"""Tile shapes per architecture, chosen by offline compilation (registers, spills, shared memory: tests/aot)."""

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


# 16-bit inputs. Keys are the lowest compute capability (major * 10 + minor) that a row serves; the highest key at most
# the card's wins. 128x256 moves three quarters of the operand bytes per FLOP of 128x128 and costs 128 accumulator
# registers a thread; the 99 KB of shared memory on sm_86, sm_89 and sm_120 hold three stages of 128x128x64 only.
HALF_CONFIGS: dict[int, TileConfig] = {
    80: TileConfig(128, 128, 64, warps=8, stages=3),
    90: TileConfig(128, 256, 64, warps=8, stages=3),
    100: TileConfig(128, 256, 64, warps=8, stages=3),
    120: TileConfig(128, 128, 64, warps=8, stages=3),
}
# fp32 inputs run on the ordinary FMA pipes: exact fp32 products, no TF32.
SINGLE_CONFIG = TileConfig(64, 128, 32, warps=8, stages=2)
# The interpreter runs programs one after another: small tiles give small tests their tile boundaries.
INTERPRETER_CONFIG = TileConfig(64, 64, 32, warps=4, stages=1, group=2)
# Lines that must be computed again; see kernels/repair.py.
REPAIR_CONFIG = TileConfig(32, 64, 16, warps=4, stages=2)


def config_for(device: torch.device, dtype: torch.dtype) -> TileConfig:
    """The tile shape to use on a device for inputs of a dtype."""
    if device.type != "cuda":
        return INTERPRETER_CONFIG
    if dtype == torch.float32:
        return SINGLE_CONFIG
    major, minor = torch.cuda.get_device_capability(device)
    return HALF_CONFIGS[max(key for key in HALF_CONFIGS if key <= max(80, major * 10 + minor))]
