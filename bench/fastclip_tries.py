# SPDX-License-Identifier: Apache-2.0
"""What was tried for each method of bench.fastclip, on a part of the training set; the tests are never opened.

    python -m bench.fastclip_tries --emoji data/emoji

The split is that of bench.demo_choices: a drawing style and 15 % of the concepts of the training part are held out.
Each method has the same number of tries, of the same length and seed. The best has the highest mean of R@10 over both
held-out parts and both directions (at R@1, tries this short differ by less than their noise);
bench.fastclip_methods names it, and a test holds it to this result.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench import record
from bench.fastclip import add_common, length
from bench.fastclip_methods import METHODS, RECIPE
from bench.runs import SPLIT_TESTS, prepare, run_all, split_of, train, tried


def main() -> None:
    """Run all tries, print a table and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    folder = prepare(options.emoji, options.out)
    sizes = split_of(options.emoji, folder)
    jobs = [(method, name) for method in options.methods for name in METHODS[method].tries]
    rows = run_all(jobs, lambda job: one_try(folder, job[0], job[1], options.epochs), options.jobs)
    for row in rows:
        print(f"{row['method']:10} {row['try']:32} {100 * row['score']:5.2f}")
    body = {"epochs": options.epochs, "split": sizes, "rows": rows}
    print(record.write("fastclip-tries", f"python -m bench.fastclip_tries --epochs {options.epochs}", body))


def one_try(folder: Path, method: str, name: str, epochs: int) -> dict[str, Any]:
    """Train and test one try."""
    words = [
        "data.train=data/split/train",
        SPLIT_TESTS,
        *length(epochs),
        *METHODS[method].words(name),
    ]
    out = train(folder, RECIPE, Path("tries") / f"{method}-{list(METHODS[method].tries).index(name)}", words)
    return {"method": method, "try": name, "words": METHODS[method].words(name), **tried(out)}


if __name__ == "__main__":
    main()
