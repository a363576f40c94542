# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.end_to_end`: compare losses, measure, print, record after every case."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import end_to_end, record
from bench.end_to_end import losses, memory, timing, work
from bench.end_to_end.sides import (
    OURS,
    OURS_COMPILED,
    PEER,
    PEER_COMPILED,
    PEER_FUSED,
    UNCOMPILED,
    Workbench,
)
from bench.end_to_end.text import DOCUMENT, document, line
from bench.peers.open_clip import PEER as OPEN_CLIP

BATCHES = 4
"""Different ones in the rounds that are timed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """1 where losses differ by more than rounding, else 0."""
    options = _options().parse_args(arguments)
    if options.text:
        results = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in options.text]
        DOCUMENT.write_text(document(results), encoding="utf-8")
        print(f"wrote {DOCUMENT}")
        return 0
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32 on both sides
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "bench.end_to_end", *words])
    agree = True
    for name in options.models:
        body: dict[str, Any] = {"open_clip": OPEN_CLIP.version, "model": name, "comparisons": [], "rows": []}
        stem = "-".join(filter(None, ("end-to-end", name.lower(), options.label)))
        for precision in options.precision:
            for entry in _cases(name, precision, device, options, body):
                print(entry, flush=True)
                path = record.write(stem, command, body, device=device, folder=options.out)
        print(f"wrote {path}", flush=True)
        agree = agree and all(entry["equal_to_rounding"] for entry in body["comparisons"])
    return 0 if agree else 1


def _cases(name: str, precision: str, device: str, options: argparse.Namespace, body: dict[str, Any]) -> Any:
    """Fill `body` with what is found for a model in a precision; a line to print for each part, once it is in."""
    try:
        bench = Workbench(name, device)
        weights = bench.initial_weights()
    except Exception as error:  # a model that one library lacks, or cannot make here, is a row that says so
        body["rows"].append(_left_out(name, precision, None, OURS, f"{type(error).__name__}: {error}"))
        yield line(body["rows"][-1])
        return
    no_peer = bench.no_peer()
    if options.steps and not no_peer:
        body["comparisons"].append(losses.compare(bench, precision, options.steps, options.check_batch))
        yield losses.sentence(body["comparisons"][-1])
        if not body["comparisons"][-1]["equal_to_rounding"]:
            body["rows"].append(_left_out(name, precision, None, OURS, "the losses differ: nothing was timed"))
            yield line(body["rows"][-1])
            return
    groups = [[OURS], [OURS_COMPILED]] if no_peer else [[OURS, PEER, PEER_FUSED], [OURS_COMPILED, PEER_COMPILED]]
    for rows, names in itertools.product(options.batch, groups if options.compile else groups[:1]):
        for row in measure(bench, names, weights, precision, rows, options.rounds, options.budget):
            body["rows"].append(row)
            yield line(row)
    if no_peer:
        body["rows"].append(_left_out(name, precision, None, PEER, no_peer))
        yield line(body["rows"][-1])


def measure(
    bench: Workbench,
    names: Sequence[str],
    weights: dict[str, Tensor],
    precision: str,
    rows: int,
    rounds: int,
    budget: float,
) -> list[dict[str, Any]]:
    """A row of the result for each side; the first one is ours."""
    batches = [bench.batch(rows, 1000 + seed) for seed in range(BATCHES)]
    flops = work.flops_by_side(bench, names, batches[0])
    peak, source = work.peak_flops(precision, bench.device)
    sides = [bench.side(name, weights, precision) for name in names]
    seconds = timing.step_seconds(sides, batches, rounds, budget)
    parts = {side.name: None if side.name in UNCOMPILED else timing.part_seconds(side, batches) for side in sides}
    del sides  # before others measure what theirs need
    found = []
    for name in names:
        summary = record.summary(seconds[name])
        over_ours = [theirs / own for theirs, own in zip(seconds[name], seconds[names[0]], strict=True)]
        found.append(
            {
                **_left_out(bench.name, precision, rows, name, None),
                "seconds": summary,
                "samples_per_second": rows / summary["median"],
                "over_clipkit": record.summary(over_ours),
                "parts": parts[name],
                "peak_mib": memory.peak_mib(bench.name, name, precision, rows, bench.device),
                "caption_tokens": float(batches[0].host_tokens.argmax(1).float().mean()) + 1,
                "gflop": flops[name] / 1e9,
                "utilisation": flops[names[0]] / summary["median"] / peak,
                "peak_gflop_per_second": peak / 1e9,
                "peak_source": source,
            }
        )
    return found


def _left_out(model: str, precision: str, batch: int | None, side: str, reason: str | None) -> dict[str, Any]:
    """A row that says why it holds no figures."""
    return {"model": model, "precision": precision, "batch": batch, "side": side, "reason": reason}


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.end_to_end",
        description=end_to_end.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", default=["ViT-B-32"], help="open_clip's names, or this library's own")
    parser.add_argument("--batch", nargs="+", type=int, default=[32], help="pairs in a step")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the card, where there is one")
    parser.add_argument("--rounds", type=int, default=9, help="the most steps of each side that are timed")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds for the rounds of a case")
    parser.add_argument("--steps", type=int, default=50, help="steps of the comparison of losses; 0 leaves it out")
    parser.add_argument("--check-batch", type=int, default=8, help="pairs in a step of that comparison")
    parser.add_argument("--compile", action="store_true", help="rows under torch.compile too")
    parser.add_argument("--label", help="a word in the result file's name")
    parser.add_argument("--out", type=Path, default=record.RESULTS, metavar="FOLDER", help="where results go")
    parser.add_argument("--text", type=Path, nargs="+", metavar="RESULT", help="only the document of result files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
