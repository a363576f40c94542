# SPDX-License-Identifier: Apache-2.0
"""OpenCLIP's loss, SogCLR, iSogCLR and FastCLIP v0 to v3 on the same real pairs: retrieval and zero-shot accuracy.

    clipkit data emoji
    python -m bench.fastclip --emoji data/emoji

Trains every method once for each seed with the `clipkit` command, one thread and two runs at a time, and writes the
result file, docs/fastclip-results.md and its figure. Called again it goes on where it was stopped, and runs nothing
that it has. Runs are deterministic for a given processor: a busy machine gives the same figures, later.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import record
from bench.fastclip_figure import draw
from bench.fastclip_methods import CONTROLS, METHODS, RECIPE
from bench.fastclip_text import write_document
from bench.runs import (
    add_options,
    build_classes,
    classes_setting,
    commit_of,
    figures,
    prepare,
    run_all,
    sizes_of,
    train,
)
from clipkit.data import open_dataset
from clipkit.train.config import load_config
from clipkit.train.typed import to_plain

EVALUATIONS = 5  # points of a curve


def main() -> None:
    """Train what is missing, print a table, write result file, document and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=load_config(RECIPE).train.epochs)
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="where the result file goes")
    parser.add_argument("--control", action="store_true", help="run the controls, after the comparison, and no more")
    options = parser.parse_args()
    if options.control:
        options.methods = list(CONTROLS)
    jobs = [(method, seed) for seed in options.seeds for method in options.methods]
    folder = prepare(options.emoji, options.out)
    classes = build_classes(options.emoji, folder / "data" / "classes")
    runs = run_all(jobs, lambda job: one_run(folder, job[0], job[1], options.epochs), options.jobs)
    command = " ".join([f"python -m bench.fastclip --epochs {options.epochs} --seeds", *map(str, options.seeds)])
    if options.control:
        print(record.write("fastclip-control", f"{command} --control", {"rows": runs}, folder=options.results))
        return
    body = {
        "recipe": to_plain(load_config(RECIPE, length(options.epochs))),
        "methods": {name: METHODS[name].words() for name in options.methods},
        "sizes": sizes_of(options.emoji),
        "classes": classes,
        "rows": runs,
    }
    path = record.write("fastclip", command, body, folder=options.results)
    print(f"wrote {path}")
    if options.results == record.RESULTS:
        print(f"wrote {write_document(path)}, {draw(json.loads(path.read_text(encoding='utf-8')))}")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of this command and of bench.fastclip_tries."""
    add_options(parser, Path("runs/fastclip"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")


def length(epochs: int) -> list[str]:
    """Settings of a run of so many epochs; gamma falls during the first half, as the authors advise."""
    return [f"train.epochs={epochs}", f"recipe.options.decay_epochs={epochs / 2:g}"]


def one_run(folder: Path, method: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train and test a method with one seed; its figures at every evaluation."""
    words = [f"train.seed={seed}", *length(epochs), *{**METHODS, **CONTROLS}[method].words()]
    steps = steps_of(folder / "data" / "emoji" / "train", words)
    words += [f"eval.every_steps={steps // EVALUATIONS}", classes_setting()]
    out = train(folder, RECIPE, Path("runs") / f"{method}-{seed}", words)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    tests, last = ([line for line in lines if line["kind"] == kind] for kind in ("eval", "train"))
    batch = load_config(RECIPE).train.global_batch
    return {
        "method": method,
        "seed": seed,
        "commit": commit_of(out),
        "loss": last[-1]["loss"],
        "tau": last[-1].get("tau", 1 / last[-1]["logit_scale"]),
        "curve": [{"samples": line["step"] * batch, **figures(line["metrics"])} for line in tests],
    }


def steps_of(train_set: Path, words: Sequence[str]) -> int:
    """How many steps a run of the recipe with these settings has."""
    config = load_config(RECIPE, words)
    return (config.train.epochs or 0) * (len(open_dataset(train_set)) // config.train.global_batch)


if __name__ == "__main__":
    main()
