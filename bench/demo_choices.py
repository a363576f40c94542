# SPDX-License-Identifier: Apache-2.0
"""What the demo's recipe gains by each of its choices, measured without looking at the demo's test sets.

    python -m bench.demo_choices --emoji data/emoji

The training part of the emoji set is split again: one of its drawing styles (twemoji) and 15 % of its concepts are held
out. Every variation below trains the recipe on the rest, on a shorter schedule, and is tested on

* style: the held-out style, concepts that were trained in other styles, among all captions of the set;
* concepts: the held-out concepts in all five styles, among their own captions.

Variations differ from the recipe in the settings listed, and in nothing else. Runs are deterministic for a given
processor and number of threads, so that a machine with other work to do gives the same figures, later.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import record
from clipkit.data import Sample, open_dataset, write_shards
from clipkit.data.building import held_out
from clipkit.train.config import load_config

CONFIG = "demo.yaml"  # the one that ships with clipkit
HELD_OUT_STYLE = "twemoji"
HELD_OUT_SHARE = 0.15
SEED_OF_SPLIT = 0
VARIATIONS: dict[str, list[str]] = {
    "recipe": [],
    "adamw": ["optim.name=adamw"],
    "adamw, twice the rate": ["optim.name=adamw", "optim.lr=3e-3"],
    "muon rate 0.05": ["optim.muon.lr=0.05"],
    "no weight decay": ["optim.weight_decay=0"],
    "batch 64": ["train.global_batch=64"],
    "labels alone": ["data.tags=[0, 0]"],
    "2 to 6 tags": ["data.tags=[2, 6]"],
    "pictures shifted and mirrored only": [
        *("data.augment.rotate=0", "data.augment.zoom=0", "data.augment.colour=0"),
    ],
    "recipe, seed 1": ["train.seed=1"],
}
FIGURES = [f"{split}/image_to_text/R@{k}" for split in ("style", "concepts") for k in (1, 5)]
LOSS_EVERY = 32  # steps


def main() -> None:
    """Build the split, train the variations one after another, print a table and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--emoji", type=Path, default=Path("data/emoji"), help="the set that `clipkit data emoji` built"
    )
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--only", nargs="+", default=list(VARIATIONS), choices=list(VARIATIONS), metavar="NAME")
    parser.add_argument("--keep", type=Path, help="split and runs stay in this folder; a second call goes on in it")
    options = parser.parse_args()
    for name in options.only:  # a misspelt key fails before the first run has taken its minutes
        load_config(CONFIG, settings_of(name, options.epochs, Path("runs")))
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).absolute()
        sizes = build_split(options.emoji, folder / "data")
        runs = {name: one_run(folder, name, options.epochs) for name in options.only}
    for name, run in runs.items():
        print(f"{name:36}", *(f"{100 * run['figures'][figure]:6.1f}" for figure in FIGURES), f"  {run['settings']}")
    command = f"python -m bench.demo_choices --epochs {options.epochs}"
    if options.only != list(VARIATIONS):
        command += " --only " + " ".join(f"'{name}'" for name in options.only)
    print(record.write("demo-choices", command, {"epochs": options.epochs, "split": sizes, "runs": runs}))


def build_split(emoji: Path, folder: Path) -> dict[str, int]:
    """Split emoji/train into folder/train, folder/style and folder/concepts; returns the sizes."""
    dataset = open_dataset(emoji / "train")
    records = [dataset.read(number) for number in range(len(dataset))]
    unseen = held_out({one.metadata["concept"] for one in records}, HELD_OUT_SHARE, SEED_OF_SPLIT)
    splits: dict[str, list[Sample]] = defaultdict(list)
    for one in records:
        split = "train"
        if one.metadata["concept"] in unseen:
            split = "concepts"
        elif one.metadata["vendor"] == HELD_OUT_STYLE:
            split = "style"
        splits[split].append(Sample(one.key, one.image_bytes, one.caption, one.metadata))
    for split, samples in splits.items():
        shutil.rmtree(folder / split, ignore_errors=True)  # a left-over shard would be read along
        write_shards(folder / split, samples)
    shutil.copy(emoji / "captions.txt", folder / "captions.txt")
    return {**{split: len(samples) for split, samples in splits.items()}, "concepts held out": len(unseen)}


def one_run(folder: Path, name: str, epochs: int) -> dict[str, Any]:
    """Train and test one variation with the `clipkit` command, in `folder`."""
    out = Path("runs") / "".join(letter if letter.isalnum() else "-" for letter in name)
    words = [word for setting in settings_of(name, epochs, out) for word in ("--set", setting)]
    command = [sys.executable, "-m", "clipkit", "train", "--config", CONFIG, *words]
    subprocess.run(command, check=True, cwd=folder, stdout=sys.stderr)
    figures = json.loads((folder / out / "eval.json").read_text(encoding="utf-8"))
    lines = map(json.loads, (folder / out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {
        "settings": VARIATIONS[name],
        "figures": {figure: figures[figure] for figure in FIGURES},
        "loss_by_step": {line["step"]: line["loss"] for line in lines if line["kind"] == "train"},
    }


def settings_of(name: str, epochs: int, out: Path) -> Sequence[str]:
    """The settings by which a variation's run differs from the recipe that ships; the variation's own come last."""
    return [
        "data.train=data/train",
        "eval.retrieval=[{name: style, data: data/style, captions: data/captions.txt},"
        " {name: concepts, data: data/concepts}]",
        f"train.epochs={epochs}",
        f"train.log_every={LOSS_EVERY}",
        f"output.dir={out}",
        *VARIATIONS[name],
    ]


if __name__ == "__main__":
    main()
