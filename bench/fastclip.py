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
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import record
from bench.fastclip_figure import draw
from bench.fastclip_methods import CONTROLS, METHODS, RECIPE
from bench.fastclip_text import write_document
from clipkit.data import Sample, open_dataset, write_shards
from clipkit.train.config import load_config
from clipkit.train.typed import to_plain

CLASSES = (
    *(
        "animal",
        "arrow",
        "building",
        "button",
        "car",
        "clock",
        "clothing",
        "computer",
        "drink",
        "face",
        "food",
        "fruit",
    ),
    *("game", "hand", "heart", "money", "music", "person", "plant", "religion", "space", "sport", "tool", "weather"),
    "zodiac",
)
"""Emojibase's tags that name a kind of thing. A picture with exactly one of them among its tags is of that class."""
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
    parser.add_argument("--emoji", type=Path, default=Path("data/emoji"), help="what `clipkit data emoji` built")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/fastclip"), help="data and runs; kept, and gone on in")


def prepare(emoji: Path, folder: Path) -> Path:
    """The absolute working folder, with data/emoji in it: runs there have the configuration that a user's have."""
    link = folder.absolute() / "data" / "emoji"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(emoji.absolute(), target_is_directory=True)
    return folder.absolute()


def build_classes(emoji: Path, folder: Path) -> dict[str, int]:
    """The test style's pictures that are of one class, with it in their metadata; how many each class has."""
    samples = []
    for split in ("test-seen", "test-unseen"):
        dataset = open_dataset(emoji / split)
        for one in (dataset.read(number) for number in range(len(dataset))):
            found = [name for name in CLASSES if name in one.metadata["tags"]]
            if len(found) == 1:
                samples.append(Sample(one.key, one.image_bytes, one.caption, {**one.metadata, "class": found[0]}))
    if not folder.exists():
        write_shards(folder, samples)
    return dict(sorted(Counter(str(sample.metadata["class"]) for sample in samples).items()))


def sizes_of(emoji: Path) -> dict[str, int]:
    """Pictures of each part of the set, and captions to find theirs among."""
    parts = {name: len(open_dataset(emoji / name)) for name in ("train", "test-seen", "test-unseen")}
    return {**parts, "captions": len((emoji / "captions.txt").read_text(encoding="utf-8").splitlines())}


def length(epochs: int) -> list[str]:
    """Settings of a run of so many epochs; gamma falls during the first half, as the authors advise."""
    return [f"train.epochs={epochs}", f"recipe.options.decay_epochs={epochs / 2:g}"]


def one_run(folder: Path, method: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train and test a method with one seed; its figures at every evaluation."""
    words = [f"train.seed={seed}", *length(epochs), *{**METHODS, **CONTROLS}[method].words()]
    steps = steps_of(folder / "data" / "emoji" / "train", words)
    words += [
        f"eval.every_steps={steps // EVALUATIONS}",
        f"eval.zero_shot=[{{name: classes, data: data/classes, classes: [{', '.join(CLASSES)}], templates: ['{{}}']}}]",
    ]
    out = train(folder, Path("runs") / f"{method}-{seed}", words)
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


def commit_of(run: Path) -> str | None:
    """What a run was made from: a command that goes on finds runs of earlier ones."""
    found: str | None = json.loads((run / "environment.json").read_text(encoding="utf-8"))["commit"]
    return found


def figures(metrics: dict[str, float]) -> dict[str, float]:
    """The recalls and accuracies of an evaluation, rounded to what their counts can show."""
    kept = (name for name in metrics if name.split("/")[-1] in ("R@1", "R@5", "R@10", "top@1", "top@5"))
    return {name: round(metrics[name], 5) for name in kept}


def steps_of(train_set: Path, words: Sequence[str]) -> int:
    """How many steps a run of the recipe with these settings has."""
    config = load_config(RECIPE, words)
    return (config.train.epochs or 0) * (len(open_dataset(train_set)) // config.train.global_batch)


def train(folder: Path, out: Path, words: Sequence[str]) -> Path:
    """The run's folder, after `clipkit train` of the recipe, unless it is finished with exactly these settings."""
    words = [*words, f"output.dir={out}"]
    run, config = folder / out, load_config(RECIPE, words)
    same = (run / "config.yaml").is_file() and load_config(run / "config.yaml") == config
    if same and (run / "finished").is_file():
        return run
    command = [sys.executable, "-m", "clipkit", "train", "--config", RECIPE, "--resume", "auto" if same else "never"]
    for word in words:
        command += ["--set", word]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{out}: {' '.join(command)} ended with {done.returncode}\n{done.stderr[-4000:]}")
    (run / "finished").touch()
    return run


def run_all(
    jobs: Sequence[tuple[Any, ...]], one: Callable[[tuple[Any, ...]], dict[str, Any]], width: int
) -> list[dict[str, Any]]:
    """Results of all jobs in their order, `width` of them at a time, each announced when it is there."""

    def announced(job: tuple[Any, ...]) -> dict[str, Any]:
        found = one(job)
        print(*job, {name: value for name, value in found.items() if not isinstance(value, (list, dict))}, flush=True)
        return found

    with ThreadPoolExecutor(width) as pool:
        return list(pool.map(announced, jobs))


if __name__ == "__main__":
    main()
