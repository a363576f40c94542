# SPDX-License-Identifier: Apache-2.0
"""The demo from download to report, once for each seed: retrieval on a drawing set it never saw, and the time it took.

python -m bench.demo --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import record
from clipkit.train.config import load_config
from clipkit.train.typed import to_plain

CONFIG = "demo.yaml"  # the one that ships with clipkit
FIGURES = [
    f"{name}/{way}/R@{k}" for name in ("seen", "unseen") for way in ("image_to_text", "text_to_image") for k in (1, 5)
]


def main() -> None:
    """Run the demo for every seed in a fresh folder, print a table and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--keep", type=Path, help="leave data and runs in this folder instead of a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        runs = [one_run(folder / f"seed-{seed}", seed, options.settings) for seed in options.seeds]
    means = {name: statistics.fmean(run["figures"][name] for run in runs) for name in FIGURES}
    for name in FIGURES:
        print(f"{name:28}", *(f"{100 * run['figures'][name]:6.1f}" for run in runs), f"  mean {100 * means[name]:.1f}")
    command = " ".join(["python -m bench.demo --seeds", *map(str, options.seeds)])
    config = to_plain(load_config(CONFIG, options.settings))
    print(record.write("demo", command, {"config": config, "mean": means, "runs": runs}))


def one_run(folder: Path, seed: int, settings: Sequence[str]) -> dict[str, Any]:
    """Fetch and build the set anew, train, evaluate, report: what `make demo` does once clipkit is installed."""
    folder.mkdir(parents=True)
    words = [word for setting in (f"train.seed={seed}", *settings) for word in ("--set", setting)]
    parts = {
        "data": timed(folder, "data", "emoji", "--cache", "downloads"),
        "train": timed(folder, "train", "--config", CONFIG, *words),
    }
    figures = json.loads((folder / "runs" / "demo" / "eval.json").read_text(encoding="utf-8"))
    return {
        "seed": seed,
        "wall_seconds": sum(part["wall_seconds"] for part in parts.values()),
        "parts": parts,
        "figures": {name: figures[name] for name in FIGURES},
    }


def timed(folder: Path, *arguments: str) -> dict[str, float]:
    """Wall and processor seconds of one clipkit command, interpreter start included."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "clipkit", *arguments], check=True, stdout=sys.stderr, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_seconds": time.perf_counter() - start,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


if __name__ == "__main__":
    main()
