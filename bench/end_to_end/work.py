# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a step, and the most that a device does in a second."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.clocks import clock_for
from bench.end_to_end.batches import Batch
from bench.end_to_end.sides import UNCOMPILED, Side, Workbench
from clipkit.encoders.attention import PACKED

SHEET = {
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
}
"""FLOP/s by data sheet, dense, (bf16, fp32 without TF32), of cards whose name holds the words; the first that fits."""
PROBE_SIDES = (1024, 2048, 4096)
PROBE_ROUNDS = 5


def flops_by_side(bench: Workbench, names: Sequence[str], batch: Batch) -> dict[str, int]:
    """Of one step of each side; compilation and precision change nothing of it."""
    plain = {name: UNCOMPILED.get(name, name) for name in names}
    counted = {name: step_flops(bench.side(name, None, "fp32"), batch) for name in set(plain.values())}
    return {name: counted[plain[name]] for name in names}


def step_flops(side: Side, batch: Batch) -> int:
    """Multiplications and additions of the matrix products of one step, as torch dispatches them.

    Attention runs as plain products here, which torch's counter knows on every device: causal attention is counted
    whole, also where a kernel leaves out the half that is masked. The loss's products (N^2 d, nothing beside a tower)
    are counted on the peer's side only: ours are inside an operator.
    """
    counter = FlopCounterMode(display=False)
    with mock.patch.dict(os.environ, {PACKED.variable: "groups"}), sdpa_kernel(SDPBackend.MATH), counter:
        side.whole(batch).backward()
    return counter.get_total_flops()


def peak_flops(precision: str, device: str) -> tuple[float, str]:
    """FLOP/s and where the figure is from: the card's data sheet, else the best product of square matrices here."""
    if device == "cuda":
        card = torch.cuda.get_device_name()
        for words, (half, single) in SHEET.items():
            if words in card:
                return half if precision == "bf16" else single, f"data sheet, {words}"
    return _measured(precision, device), f"measured, {precision} products of {PROBE_SIDES[0]} to {PROBE_SIDES[-1]}"


def _measured(precision: str, device: str) -> float:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    clock, best = clock_for(device), 0.0
    for side in PROBE_SIDES:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        product = partial(torch.mm, left, right, out=left @ right)
        seconds = min(clock(product) for _ in range(PROBE_ROUNDS))
        best = max(best, 2 * side**3 / seconds)
    return best
