# SPDX-License-Identifier: Apache-2.0
"""EVA-CLIP's recipe on real pairs, and what each of its parts is worth: accuracy over seeds, and samples per second.

    clipkit data emoji
    python -m bench.evaclip --emoji data/emoji

Pre-trains an image tower by masked image modelling for each seed, trains every variant from it with the `clipkit`
command, one thread and two runs at a time, times the variants' steps in turns, and writes the result file and the
tables of docs/evaclip.md. Called again it goes on where it was stopped, and runs nothing that it has. The accuracies
are deterministic for a given processor: a busy machine gives the same, later.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench import record
from bench.evaclip_methods import PRETRAINING, RECIPE, VARIANTS
from bench.evaclip_speed import measure
from bench.evaclip_text import write_document
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
from clipkit.train.config import load_config
from clipkit.train.typed import to_plain


def main() -> None:
    """Train what is missing, time the steps, write result file and document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, Path("runs/evaclip"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=30, help="timed steps of each variant")
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="where the result file goes")
    options = parser.parse_args()
    folder = prepare(options.emoji, options.out)
    classes = build_classes(options.emoji, folder / "data" / "classes")
    pretraining = run_all([(seed,) for seed in options.seeds], lambda job: pretrain(folder, job[0]), options.jobs)
    jobs = [(name, seed) for seed in options.seeds for name in VARIANTS]
    runs = run_all(jobs, lambda job: one_run(folder, job[0], job[1]), options.jobs)
    body = {
        "recipe": to_plain(load_config(RECIPE)),
        "pre-training": to_plain(load_config(PRETRAINING)),
        "variants": {name: variant.words() for name, variant in VARIANTS.items()},
        "sizes": sizes_of(options.emoji),
        "classes": classes,
        "pre-trained": pretraining,
        "speed": measure(options.emoji, options.repeats),
        "rows": runs,
    }
    command = " ".join(["python -m bench.evaclip --seeds", *map(str, options.seeds)])
    path = record.write("evaclip", command, body, folder=options.results)
    print(f"wrote {path}")
    if options.results == record.RESULTS:
        print(f"wrote {write_document(path)}")


def pretrain(folder: Path, seed: int) -> dict[str, Any]:
    """Masked image modelling with one seed."""
    out = train(folder, PRETRAINING, pretrained(seed), [f"train.seed={seed}"])
    return {"seed": seed, "commit": commit_of(out), "loss": last_line(out)["loss"]}


def pretrained(seed: int) -> Path:
    """The folder of a seed's pre-training, from the working folder."""
    return Path("runs") / f"mim-{seed}"


def one_run(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Train and test a variant with one seed."""
    words = [f"train.seed={seed}", f"model.init.image={pretrained(seed)}", classes_setting(), *VARIANTS[name].words()]
    out = train(folder, RECIPE, Path("runs") / f"{name}-{seed}", words)
    last = last_line(out)
    return {
        "variant": name,
        "seed": seed,
        "commit": commit_of(out),
        "loss": last["loss"],
        "scale": last["logit_scale"],
        "figures": figures(json.loads((out / "eval.json").read_text(encoding="utf-8"))),
    }


def last_line(run: Path) -> dict[str, Any]:
    """What was logged of a run's last step."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found: dict[str, Any] = [line for line in lines if line["kind"] == "train"][-1]
    return found


if __name__ == "__main__":
    main()
