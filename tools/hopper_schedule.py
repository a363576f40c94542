# SPDX-License-Identifier: Apache-2.0
"""Predicts how busy csrc/cuda/hopper_statistics.cu keeps the tensor cores: `python tools/hopper_schedule.py`, 15 s.

One multiprocessor in clocks: bulk copies refill a ring of stages, two warpgroups take turns at the tensor cores and do
their exponentials in between. The rates below are assumptions, not measurements; what the script shows is how they add
up. Shared-memory bandwidth, power and the start of the kernel are not in it.
"""

from __future__ import annotations

from typing import NamedTuple

MULTIPLY_CLOCKS = 8
"""Of one warpgroup, per element of the width: 64 x 256 products at 4096 FLOP a clock."""
TILE_ROWS, TILE_COLUMNS, CLUSTER = 128, 256, 2
L2_BYTES_PER_CLOCK = 38.0
"""Of one multiprocessor's share."""
L2_LATENCY = 900.0
EPILOGUE_CLOCKS = 1500.0
"""A warpgroup's 128 logits per thread: maxima 256 clocks at half rate, 1024 of exponentials at an eighth of a
warp a clock with the multiply-adds and sums beside them, the rest shuffles one after another."""
ITEM_END_CLOCKS = 500.0
TILES_PER_ITEM = 8
ITEMS = 12
STEP = 16.0


class Ring(NamedTuple):
    """Shared memory as `stages` pieces of `depth` elements of the width each; the second warpgroup starts `head_start`
    pieces behind the first."""

    stages: int
    depth: int
    head_start: int


RINGS = {
    "as shipped": Ring(9, 32, 6),
    "no head start": Ring(9, 32, 0),
    "4 stages of 64": Ring(4, 64, 2),
}


class _Warpgroup:
    """Where a consumer is: multiplies finished and clocks of exponentials left before the next tile."""

    def __init__(self) -> None:
        self.finished = 0
        self.multiply_left = 0.0
        self.epilogue_left = 0.0


def tensor_share(width: int, ring: Ring, *, multicast: bool = True) -> float:
    """The share of time in which the tensor cores multiply. Two warpgroups that both have multiplies share them, two
    that both do exponentials share those."""
    blocks = -(-width // ring.depth)
    per_item = blocks * TILES_PER_ITEM
    total = per_item * ITEMS
    columns_loaded = TILE_COLUMNS // CLUSTER if multicast else TILE_COLUMNS
    load_clocks = 2 * ring.depth * (TILE_ROWS + columns_loaded) / L2_BYTES_PER_CLOCK
    groups = (_Warpgroup(), _Warpgroup())
    arrivals: list[float] = []
    now = loader = busy = 0.0
    while groups[1].finished < total or groups[0].finished < total:
        while len(arrivals) < min(total, ring.stages + min(group.finished for group in groups)):
            loader = max(loader, now) + load_clocks
            arrivals.append(loader + L2_LATENCY)
        for group in groups:
            waits = group is groups[1] and groups[0].finished < min(ring.head_start, blocks)
            idle = group.epilogue_left <= 0 and group.multiply_left <= 0 and group.finished < total
            if idle and not waits and group.finished < len(arrivals) and arrivals[group.finished] <= now:
                group.multiply_left += MULTIPLY_CLOCKS * ring.depth
        multiplying = [group for group in groups if group.multiply_left > 0]
        ending = [group for group in groups if group.epilogue_left > 0]
        for group in ending:
            group.epilogue_left -= STEP / len(ending)
        for group in multiplying:
            group.multiply_left -= STEP / len(multiplying)
            if group.multiply_left <= 0:
                group.finished += 1
                if group.finished % blocks == 0:
                    group.epilogue_left = EPILOGUE_CLOCKS + ITEM_END_CLOCKS * (group.finished % per_item == 0)
        busy += STEP * bool(multiplying)
        now += STEP
    return busy / now


def main() -> None:
    """Print the predictions as a table."""
    print("predicted share of time in which the tensor cores multiply (no measurement)")
    print(f"{'width':>6}", *(f"{name:>15}" for name in RINGS), f"{'no multicast':>15}")
    for width in (512, 768, 1024, 1280):
        shares = [tensor_share(width, ring) for ring in RINGS.values()]
        shares.append(tensor_share(width, RINGS["as shipped"], multicast=False))
        print(f"{width:>6}", *(f"{share:>15.2f}" for share in shares))


if __name__ == "__main__":
    main()
