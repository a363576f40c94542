# SPDX-License-Identifier: Apache-2.0
"""`clipkit index`: index shards (or check a table), and say what is in them and what is broken."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from clipkit.data.records import Dataset

HELP = "index webdataset shards or a CSV"
_READERS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `clipkit index`."""
    parser.add_argument(
        "source", metavar="SOURCE", help="a folder of .tar shards, a pattern ('train-{00000..00012}.tar'), or a .csv"
    )
    parser.add_argument("--check", action="store_true", help="also read and decode every picture (slow)")
    parser.add_argument("--tags-key", default="tags", help="the field of a sample's json that holds its tags")


def run(args: argparse.Namespace) -> int:
    """Index, report; exit code 1 when --check finds a broken sample."""
    from clipkit.data.source import open_dataset

    started = time.monotonic()
    dataset = open_dataset(args.source, tags_key=args.tags_key, progress=_Counter("shards"))
    seconds = time.monotonic() - started
    print(f"{len(dataset)} samples, indexed in {seconds:.1f} s, fingerprint {dataset.fingerprint[:16]}")
    for reason, count in sorted(dataset.problems.counts.items()):
        print(f"  left out, {reason}: {count}")
        for where in dataset.problems.examples[reason]:
            print(f"    {where}")
    if not args.check:
        return 0
    broken = _check(dataset)
    print(f"{len(dataset) - sum(broken.values())} samples decode")
    for reason, count in sorted(broken.items()):
        print(f"  broken, {reason}: {count}")
    return 1 if broken else 0


def _check(dataset: Dataset) -> Counter[str]:
    """Decode every sample; name each broken one, count them by reason."""
    from clipkit.data.pictures import decode_image
    from clipkit.data.records import BrokenSample

    def attempt(index: int) -> BrokenSample | None:
        key = ""
        try:
            record = dataset.read(index)
            key = record.key
            decode_image(record.image_bytes)
        except BrokenSample as broken:
            return BrokenSample(broken.reason, broken.shard or dataset.name, broken.key or key)
        return None

    counts: Counter[str] = Counter()
    progress = _Counter("samples")
    with ThreadPoolExecutor(_READERS) as pool:
        for number, broken in enumerate(pool.map(attempt, range(len(dataset))), start=1):
            progress(number, len(dataset))
            if broken is not None:
                counts[broken.reason] += 1
                print(f"  sample {number - 1}: {broken}")
    return counts


class _Counter:
    """A count that rewrites itself, on a terminal only."""

    def __init__(self, what: str) -> None:
        self._what, self._next = what, 0.0

    def __call__(self, done: int, total: int) -> None:
        if sys.stdout.isatty() and (done == total or time.monotonic() >= self._next):
            self._next = time.monotonic() + 0.1
            print(f"\r  {done}/{total} {self._what}", end="\n" if done == total else "", flush=True)
