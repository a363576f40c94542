# SPDX-License-Identifier: Apache-2.0
"""What was tried for each variant of bench.evaclip, on a part of the training set; the tests are never opened.

    python -m bench.evaclip_tries --emoji data/emoji

The split, and the score by which the best is taken, are those of bench.fastclip_tries; the pre-training sees the same
part. bench.evaclip_methods names the best, and a test holds it to this result.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench import record
from bench.evaclip_methods import PRETRAINING, RECIPE, TRIES_EACH, VARIANTS
from bench.runs import SPLIT_TESTS, add_options, prepare, run_all, split_of, train, tried

TRAIN = "data.train=data/split/train"
PRETRAINED = Path("tries") / "mim"


def main() -> None:
    """Run all tries, print a table and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, Path("runs/evaclip"))
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    folder = prepare(options.emoji, options.out)
    sizes = split_of(options.emoji, folder)
    train(folder, PRETRAINING, PRETRAINED, [TRAIN])
    jobs = [
        (name, one) for name, variant in VARIANTS.items() if len(variant.tries) == TRIES_EACH for one in variant.tries
    ]
    rows = run_all(jobs, lambda job: one_try(folder, job[0], job[1], options.epochs), options.jobs)
    for row in rows:
        print(f"{row['variant']:10} {row['try']:32} {100 * row['score']:5.2f}")
    body = {"epochs": options.epochs, "split": sizes, "rows": rows}
    print(record.write("evaclip-tries", f"python -m bench.evaclip_tries --epochs {options.epochs}", body))


def one_try(folder: Path, name: str, one: str, epochs: int) -> dict[str, Any]:
    """Train and test one try."""
    variant = VARIANTS[name]
    words = [TRAIN, SPLIT_TESTS, f"train.epochs={epochs}", f"model.init.image={PRETRAINED}", *variant.words(one)]
    out = train(folder, RECIPE, Path("tries") / f"{name}-{list(variant.tries).index(one)}", words)
    return {"variant": name, "try": one, "words": variant.words(one), **tried(out)}


if __name__ == "__main__":
    main()
