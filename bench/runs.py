# SPDX-License-Identifier: Apache-2.0
"""Training runs of a comparison on the emoji set: data, classes, `clipkit train` two at a time, figures.

A comparison that is called again goes on where it was stopped, and runs nothing that it has. Runs are deterministic for
a given processor: a busy machine gives the same figures, later.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.demo_choices import build_split
from clipkit.data import Sample, open_dataset, write_shards
from clipkit.train.config import load_config

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


SPLIT_TESTS = (
    "eval.retrieval=[{name: style, data: data/split/style, captions: data/split/captions.txt},"
    " {name: concepts, data: data/split/concepts}]"
)
"""The setting by which a try is tested: on the two parts that `split_of` holds out."""


def add_options(parser: argparse.ArgumentParser, out: Path) -> None:
    """Where data are and runs go, and how many at a time."""
    parser.add_argument("--emoji", type=Path, default=Path("data/emoji"), help="what `clipkit data emoji` built")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=out, help="data and runs; kept, and gone on in")


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


def classes_setting() -> str:
    """The setting by which a run is tested on the classes that `build_classes` wrote to data/classes."""
    names = ", ".join(CLASSES)
    return f"eval.zero_shot=[{{name: classes, data: data/classes, classes: [{names}], templates: ['{{}}']}}]"


def split_of(emoji: Path, folder: Path) -> dict[str, int]:
    """bench.demo_choices' split of the training set in folder/data/split, made if it is not there; its sizes."""
    split = folder / "data" / "split"
    sizes = split / "sizes.json"
    if not sizes.exists():
        sizes.write_text(json.dumps(build_split(emoji, split)), encoding="utf-8")
    found: dict[str, int] = json.loads(sizes.read_text(encoding="utf-8"))
    return found


def tried(run: Path) -> dict[str, Any]:
    """What a try came to: its score is the mean of R@10 over both held-out parts and both directions."""
    found = figures(json.loads((run / "eval.json").read_text(encoding="utf-8")))
    score = statistics.fmean(value for key, value in found.items() if key.endswith("/R@10"))
    return {"commit": commit_of(run), "score": score, "figures": found}


def commit_of(run: Path) -> str | None:
    """What a run was made from: a command that goes on finds runs of earlier ones."""
    found: str | None = json.loads((run / "environment.json").read_text(encoding="utf-8"))["commit"]
    return found


def figures(metrics: dict[str, float]) -> dict[str, float]:
    """The recalls and accuracies of an evaluation, rounded to what their counts can show."""
    kept = (name for name in metrics if name.split("/")[-1] in ("R@1", "R@5", "R@10", "top@1", "top@5"))
    return {name: round(metrics[name], 5) for name in kept}


def train(folder: Path, recipe: str, out: Path, words: Sequence[str]) -> Path:
    """The run's folder, after `clipkit train` of a recipe by name, unless it is finished with exactly these settings.

    folder: where the command runs; `out` is the run's, from there.
    """
    words = [*words, f"output.dir={out}"]
    run, config = folder / out, load_config(recipe, words)
    same = (run / "config.yaml").is_file() and load_config(run / "config.yaml") == config
    if same and (run / "finished").is_file():
        return run
    command = [sys.executable, "-m", "clipkit", "train", "--config", recipe, "--resume", "auto" if same else "never"]
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
