# SPDX-License-Identifier: Apache-2.0
"""`clipkit index`: index shards (or check a table), and say what is in them and what is broken."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from clipkit.cli.data import TerminalProgress
from clipkit.data.records import Dataset

HELP = "index webdataset shards or a CSV"
_READERS = 4
_MANY_SHARDS = 16  # from here on several processes pay
_PORTION = 1024  # samples in flight at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `clipkit index`."""
    parser.add_argument(
        "source", metavar="SOURCE", help="a folder of .tar shards, a pattern ('train-{00000..00012}.tar'), or a .csv"
    )
    parser.add_argument("--check", action="store_true", help="also read and decode every picture (slow)")
    parser.add_argument("--tags-key", default="tags", help="the field of a sample's json that holds its tags")


def run(args: argparse.Namespace) -> int:
    """Index, report; exit code 1 when --check finds a broken sample."""
    from clipkit.data.index import index_shards
    from clipkit.data.raster import usable_cores
    from clipkit.data.source import find_shards, open_dataset

    started = time.monotonic()
    if not args.source.lower().endswith((".csv", ".tsv")):
        shards, processes = find_shards(args.source), usable_cores()
        if len(shards) >= _MANY_SHARDS and processes > 1:
            index_shards(shards, processes, TerminalProgress().count)
    dataset = open_dataset(args.source, tags_key=args.tags_key)
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
        try:
            record = dataset.read(index)
        except BrokenSample as broken:
            return broken
        try:
            decode_image(record.image_bytes)
        except BrokenSample as broken:
            return BrokenSample(broken.reason, record.shard, record.key)
        return None

    counts: Counter[str] = Counter()
    progress = TerminalProgress()
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(dataset), _PORTION):
            portion = range(start, min(start + _PORTION, len(dataset)))
            for index, broken in zip(portion, pool.map(attempt, portion), strict=True):
                if broken is not None:
                    counts[broken.reason] += 1
                    print(f"  sample {index}: {broken}")
            progress.count(portion.stop, len(dataset))
    return counts
