# SPDX-License-Identifier: Apache-2.0
"""The compiled CPU backend beside plain torch, loss by loss, and what its passes over a tile cost.

    python -m bench.cpu_families                    # all losses at N = 4096, d = 512, and every pass; writes a result
    python -m bench.cpu_families --rows 2048 --losses clip siglip

Losses: seconds of forward plus backward in turns in one process, and the median ratio of neighbours. Passes: one
thread, nanoseconds a logit of a 512 x 512 tile in the second-level cache, the least of many runs in time of this thread
alone, beside torch's exponential of the same tile.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import clipkit
from bench import record

COMMAND = "python -m bench.cpu_families"
WIDTH = 512
TILE = 512
Loss = Callable[[dict[str, Tensor], str], Tensor]


def inputs(rows: int) -> dict[str, Tensor]:
    """Unit towers [rows, 512] of a student (a, b) and a teacher (to_a, to_b); the student's want gradients."""
    generator = torch.Generator().manual_seed(0)
    towers = {}
    for name in ("a", "b", "to_a", "to_b"):
        towers[name] = torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=generator), dim=1)
    for name in ("a", "b"):
        towers[name].requires_grad_()
    return {**towers, "scale": torch.tensor(1 / 0.07, requires_grad=True), "bias": torch.tensor(-10.0)}


def _linear_bce(t: dict[str, Tensor], backend: str) -> Tensor:
    """Three labels a row, as many classes as rows."""
    rows = len(t["a"])
    targets = torch.arange(3 * rows) * 7 % rows
    return clipkit.linear_bce_with_logits(
        t["a"], t["b"], None, torch.arange(rows + 1) * 3, targets, backend=backend
    )  # fmt: skip


LOSSES: dict[str, Loss] = {
    "clip": lambda t, k: clipkit.clip_loss(t["a"], t["b"], t["scale"], backend=k),
    "clip, logits kept": lambda t, k: clipkit.clip_loss(t["a"], t["b"], t["scale"], workspace=4 << 30, backend=k),
    "siglip": lambda t, k: clipkit.siglip_loss(t["a"], t["b"], t["scale"], t["bias"], backend=k),
    "info_nce": lambda t, k: clipkit.info_nce(t["a"], t["b"], t["scale"], backend=k),
    "icl": lambda t, k: clipkit.icl_loss(t["a"], t["b"], t["to_a"], t["to_b"], t["scale"], backend=k),
    "crd": lambda t, k: clipkit.crd_loss(t["a"], t["b"], t["scale"], t["to_a"], t["to_b"], 20.0, backend=k),
    "gd": lambda t, k: clipkit.gd_loss(t["a"], t["b"], t["scale"], t["to_a"], t["to_b"], 20.0, backend=k),
    "linear_bce": _linear_bce,
}


def measure_loss(name: str, rows: int, repeats: int) -> dict[str, object]:
    """Seconds of either backend, and how many times the compiled one's time plain torch takes."""
    tensors = inputs(rows)
    leaves = [tensors[key] for key in ("a", "b", "scale") if not (name == "linear_bce" and key == "scale")]

    def step(backend: str) -> None:
        torch.autograd.grad(LOSSES[name](tensors, backend), leaves)

    seconds = record.interleaved({backend: partial(step, backend) for backend in ("cpu", "torch")}, repeats)
    ratios = [slow / fast for slow, fast in zip(seconds["torch"], seconds["cpu"], strict=True)]
    summaries = {backend: record.summary(values) for backend, values in seconds.items()}
    return {"loss": name, "N": rows, "seconds": summaries, "torch over cpu": statistics.median(ratios)}


def passes() -> dict[str, Callable[[], object]]:
    """The compiled passes on a tile of cosines, as the sweeps call them."""
    from clipkit import _native as native

    lines = torch.arange(TILE)
    zeros, lse, sums = torch.zeros(TILE), torch.full((TILE,), 6.0), torch.zeros(TILE, dtype=torch.float64)
    running = [torch.full((TILE,), -torch.inf), torch.zeros(TILE), torch.full((TILE,), -torch.inf), torch.zeros(TILE)]
    offsets, shrink, bias = torch.arange(TILE + 1), torch.ones(TILE), torch.full((TILE,), -10.0)
    scales, moment = torch.full((TILE,), 1 / 0.07), torch.zeros(TILE)
    tiles = [torch.empty(TILE, TILE) for _ in range(2)]
    cosines = torch.randn(TILE, TILE, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5

    def calling(name: str, *arguments: Tensor | float | int) -> Callable[[], object]:
        plain = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
        tile = native.Tile(tiles[0].data_ptr(), TILE, TILE, TILE, 1 / 0.07)
        kept = (arguments, tiles)  # the addresses live as long as the call

        def call() -> object:
            return kept and getattr(native, name)(tile, *plain)

        return call

    def refill() -> None:
        for tile in tiles:
            tile.copy_(cosines)

    second_order = (tiles[1], tiles[1], lse, lse)
    return {
        "refill": refill,
        "torch.exp": lambda: torch.exp(tiles[0], out=tiles[0]),
        "statistics": calling("tile_statistics", lines, 0, zeros, *running),
        "anchors": calling("tile_anchors", lines, 0, scales, *running[:2], moment),
        "gradient": calling("tile_gradient", lines, 0, zeros, lse, 0, lse, 0),
        "gradient, rows": calling("tile_gradient", lines, 0, zeros, lse, 0, 0, 0),
        "gradient, scales": calling("tile_gradient", lines, 0, zeros, lse, scales, lse, scales),
        "online softmax": calling("tile_online_softmax", lines, 0, zeros, *running[:2], shrink),
        "sigmoid": calling("tile_sigmoid", bias, offsets, lines, 0, sums),
        "divergence": calling("tile_divergence", tiles[1], 20.0, lse, lse, lse, lse),
        "curvature sums": calling("tile_curvature_sums", *second_order, sums, sums),
        "curvature weights": calling("tile_curvature_weights", *second_order, zeros, zeros, lines, 0, *[zeros] * 3),
    }


def measure_passes(repeats: int) -> dict[str, dict[str, float]]:
    """Nanoseconds a logit by instruction set and pass."""
    from clipkit import _native as native

    usual, threads = native.instruction_set(), torch.get_num_threads()
    torch.set_num_threads(1)
    table = {}
    for instructions in native.instruction_sets():
        native.use_instruction_set(instructions)
        calls = passes()
        refill = calls.pop("refill")
        table[instructions] = {name: _least(call, refill, repeats) / TILE**2 * 1e9 for name, call in calls.items()}
    native.use_instruction_set(usual)
    torch.set_num_threads(threads)
    return table


def _least(call: Callable[[], object], refill: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        refill()
        start = time.thread_time()
        call()
        best = min(best, time.thread_time() - start)
    return best


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--losses", nargs="*", choices=list(LOSSES), default=list(LOSSES))
    options = parser.parse_args()
    nanoseconds = measure_passes(40)
    for instructions, table in nanoseconds.items():
        print(instructions, json.dumps({name: round(value, 3) for name, value in table.items()}), flush=True)
    rows = []
    for name in options.losses:
        rows.append(measure_loss(name, options.rows, options.repeats))
        print(json.dumps(rows[-1]), flush=True)
    body = {"d": WIDTH, "dtype": "float32", "rows": rows, "nanoseconds a logit": nanoseconds}
    print(f"wrote {record.write('cpu-families', shlex.join([*COMMAND.split(), *sys.argv[1:]]), body)}")


if __name__ == "__main__":
    main()
