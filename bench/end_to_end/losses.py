# SPDX-License-Identifier: Apache-2.0
"""Do both sides train the same model? Their losses, step by step, and how far each is from more exact arithmetic.

Two correct programs do not give the same bits: products of other shapes are summed in another order, and torch's fused
AdamW rounds otherwise than its plain one (it divides by the bias correction in another place). So the peer trains a
third time in the next wider precision (fp64 for fp32, fp32 for bf16), and "equal to rounding" means that our losses are
no further from that run than the peer's own are, times LENIENCE.

The rate rises as open_clip's does from the first step on, but in WARM_UP steps and not ten thousand, so that 50 steps
change the weights: the batches come again, and the loss falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.end_to_end.sides import DTYPES, OPTIM, OURS, PEER, Side, Workbench

WIDER = {"fp32": "fp64", "bf16": "fp32"}
WARM_UP = 500
CYCLE = 4
"""Batches, over and over."""
LENIENCE = 3.0
"""The two rounding errors are draws of one size: their largest over a run differ by a factor."""
ULPS = {"fp32": 2.0**-22, "bf16": 2.0**-7}
"""Two units in the last place of a loss: nearer than that nothing is told apart."""


def compare(bench: Workbench, precision: str, steps: int, rows: int) -> dict[str, Any]:
    """Train all three; the entry of the result file."""
    weights = bench.initial_weights()
    sides = [bench.side(OURS, weights, precision), bench.side(PEER, weights, precision)]
    sides.append(bench.side(PEER, weights, WIDER[precision]))
    decayed = {side.decayed() for side in sides}
    assert len(decayed) == 1, f"the sides decay {decayed} parameters"
    ours, peer, exact = train(bench, sides, [precision, precision, WIDER[precision]], steps, rows)
    return {
        "model": bench.name,
        "precision": precision,
        "batch": rows,
        "steps": steps,
        **verdict(ours, peer, exact, precision),
        "losses": {OURS: ours, PEER: peer, f"{PEER}, {WIDER[precision]}": exact},
    }


def train(
    bench: Workbench, sides: Sequence[Side], precisions: Sequence[str], steps: int, rows: int
) -> list[list[float]]:
    """Each side's losses on the same batches."""
    losses: list[list[float]] = [[] for _ in sides]
    for step in range(steps):
        for side, precision, found in zip(sides, precisions, losses, strict=True):
            side.set_rate(OPTIM.lr * min(1.0, (step + 1) / WARM_UP))
            found.append(float(side.step(bench.batch(rows, step % CYCLE, DTYPES[precision]))))
    return losses


def verdict(ours: list[float], peer: list[float], exact: list[float], precision: str) -> dict[str, Any]:
    """The largest differences, and whether ours is to be told from the peer's by more than rounding."""
    our_error, peer_error = _largest(ours, exact), _largest(peer, exact)
    floor = ULPS[precision] * max(map(abs, exact))
    return {
        "max_difference": _largest(ours, peer),
        "our_error": our_error,
        "peer_error": peer_error,
        "equal_to_rounding": our_error <= max(LENIENCE * peer_error, floor),
    }


def sentence(entry: dict[str, Any]) -> str:
    """A comparison as a run prints it."""
    return (
        f"{entry['model']} {entry['precision']}: losses of {entry['steps']} steps of {entry['batch']} pairs differ by "
        f"at most {entry['max_difference']:.1e}; from {WIDER[entry['precision']]} ours by {entry['our_error']:.1e}, "
        f"the peer's by {entry['peer_error']:.1e}: {'equal to rounding' if entry['equal_to_rounding'] else 'DIFFERENT'}"
    )


def _largest(first: list[float], second: list[float]) -> float:
    """Of |first - second|; a loss that is not a number is infinitely far from everything."""
    differences = [abs(a - b) for a, b in zip(first, second, strict=True)]
    return float("inf") if any(value != value for value in differences) else max(differences)
