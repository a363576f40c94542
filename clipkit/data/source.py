# SPDX-License-Identifier: Apache-2.0
"""From what a user writes (a folder, a pattern of tars, a table) to a dataset."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from clipkit.data.csvset import CsvDataset
from clipkit.data.records import Dataset
from clipkit.data.shards import ShardDataset
from clipkit.errors import value_error

_log = logging.getLogger(__name__)
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_dataset(
    source: str | Path, *, tags_key: str = "tags", progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Open a folder of tar shards, a pattern of them (`train-{00000..00012}.tar`, `train-*.tar`, `{a,b}/*.tar`), or a
    .csv / .tsv of (path, caption).

    `tags_key` names the field of a sample's json (or the column) that holds its tags. `progress(done, total)` is
    called per shard. Raises FileNotFoundError where nothing is there, ValueError where nothing usable is.
    """
    text = str(source)
    dataset: Dataset
    if text.lower().endswith((".csv", ".tsv")):
        if not Path(text).is_file():
            raise FileNotFoundError(f"source: {text} does not exist; give a table of (path, caption)")
        dataset = CsvDataset(Path(text), tags_key=tags_key)
    else:
        dataset = ShardDataset(find_shards(text), tags_key=tags_key, progress=progress)
    if len(dataset) == 0:
        raise value_error(
            "source",
            got=f"{text} without one usable sample ({dict(dataset.problems.counts) or 'it is empty'})",
            want="samples of a picture and a caption",
            fix="check the files with: clipkit index",
        )
    for reason, count in sorted(dataset.problems.counts.items()):
        _log.warning("%s: left out %d (%s), e.g. %s", text, count, reason, dataset.problems.examples[reason][0])
    return dataset


def find_shards(source: str) -> list[Path]:
    """The tar files that `source` names, sorted within each pattern; FileNotFoundError where there are none."""
    if Path(source).is_dir():
        shards = sorted(Path(source).glob("*.tar"))
        if not shards:
            inside = sorted({path.parent.name for path in Path(source).glob("*/*.tar")})
            hint = f"give one of its folders: {', '.join(inside)}" if inside else "give a folder of .tar shards"
            raise FileNotFoundError(f"source: {source} holds no .tar files; {hint}")
        return shards
    shards = []
    for pattern in _expand_braces(source):
        matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        shards.extend(Path(match) for match in matches)
    if missing := [shard for shard in shards if not shard.exists()]:
        raise FileNotFoundError(f"source: {missing[0]} does not exist ({len(missing)} of {len(shards)} shards)")
    if not shards:
        raise FileNotFoundError(f"source: no file matches {source}; give a folder, a pattern of .tar files, or a .csv")
    return shards


def _expand_braces(pattern: str) -> Iterator[str]:
    """`{00..12}` as numbers of the width of the first, `{a,b}` as alternatives; several multiply out, left slowest."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    body = match.group(1)
    if numbers := _RANGE.fullmatch(body):
        first, last = numbers.groups()
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = body.split(",")
    for choice in choices:
        yield from _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])
