# SPDX-License-Identifier: Apache-2.0
"""`clipkit search`: the pictures nearest to a sentence, printed and as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipkit.train.config import Config

HELP = "find the pictures nearest to a sentence"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `clipkit search`."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="the folder that clipkit train wrote")
    parser.add_argument("queries", metavar="QUERY", nargs="+", help='what to look for, for example "red fruit"')
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many pictures (default 10)")
    parser.add_argument("--data", metavar="DATA", help="search this set instead of the run's evaluation sets")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest complete one")


def run(args: argparse.Namespace) -> int:
    """Search, print, write RUN/search/<query>.html."""
    from clipkit.cli.eval import checkpoint_step
    from clipkit.data import open_dataset
    from clipkit.errors import value_error
    from clipkit.evaluate import embed_texts
    from clipkit.evaluate.searching import open_index, search, slug
    from clipkit.report import write_results
    from clipkit.train.loading import load_run

    if args.top < 1:
        raise value_error("--top", got=args.top, want="at least 1", fix="leave it out for 10")
    model, config, tokenizer = load_run(args.run_dir, step=args.step)
    step, folder = checkpoint_step(args.run_dir, args.step), args.run_dir / "search"
    indexes = [
        open_index(folder, name, open_dataset(data), model, step=step, batch_size=config.eval.batch_size)
        for name, data in _sets(args.data, config)
    ]
    features = embed_texts(model, tokenizer, args.queries)
    found = [(query, search(indexes, feature, args.top)) for query, feature in zip(args.queries, features, strict=True)]
    total = sum(len(index) for index in indexes)
    source = f"{total:,} pictures, model {args.run_dir.resolve().name} at step {step:,}"
    path = write_results(folder / f"{slug(' '.join(args.queries))}.html", found, source=source)
    for query, hits in found:
        print(f"{query!r}")
        for place, hit in enumerate(hits, 1):
            print(f"{place:4}  {hit.score:6.3f}  {hit.caption}  [{hit.key}]")
    print(f"page: {path}")
    return 0


def _sets(data: str | None, config: Config) -> list[tuple[str, str]]:
    """(name, source) of the sets to search in."""
    from clipkit.errors import value_error

    if data is not None:
        return [(Path(data).name, data)]
    sets = {entry.data: entry.name for entry in config.eval.retrieval}
    sets.update({entry.data: entry.name for entry in config.eval.zero_shot})
    if not sets:
        raise value_error(
            "--data", got="nothing, and the run has no evaluation sets", want="pictures", fix="name a set"
        )
    return [(name, source) for source, name in sets.items()]
