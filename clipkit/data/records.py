# SPDX-License-Identifier: Apache-2.0
"""What a dataset hands out, and what it raises for a sample that cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Record:
    """One captioned picture as it lies on disk. `id` is dense: 0 to len(dataset) - 1; `shard` is the file it is in."""

    id: int
    key: str
    image_bytes: bytes
    caption: str
    metadata: dict[str, Any]
    tags: Sequence[str] = ()
    shard: str = ""


class BrokenSample(Exception):  # noqa: N818  (it names the sample's state; the caller skips it)
    """A sample that cannot be used: `reason` is one of a small vocabulary, so that it can be counted."""

    def __init__(self, reason: str, shard: str, key: str) -> None:
        super().__init__(reason, shard, key)
        self.reason, self.shard, self.key = reason, shard, key

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"

    @property
    def where(self) -> str:
        """Shard and key, fit for a log."""
        return f"{self.shard}: {printable(self.key)}"


@dataclass
class Problems:
    """What an index left out: how often for each reason, and the first few of each by name."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    EXAMPLES_PER_REASON = 5

    def add(self, reason: str, where: str) -> None:
        """Count one more thing left out."""
        self.counts[reason] += 1
        named = self.examples.setdefault(reason, [])
        if len(named) < self.EXAMPLES_PER_REASON:
            named.append(where)

    def merge(self, other: Problems) -> None:
        """Add what another shard left out."""
        self.counts.update(other.counts)
        for reason, names in other.examples.items():
            mine = self.examples.setdefault(reason, [])
            mine.extend(names[: self.EXAMPLES_PER_REASON - len(mine)])


def printable(name: str) -> str:
    """A name from a file as a log may show it: no control characters, no half-decoded bytes, not endless."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name[:200])


class Dataset(Protocol):
    """Random access to captioned pictures by dense id."""

    name: str
    problems: Problems

    @property
    def fingerprint(self) -> str:
        """Changes when ids could mean other samples than before."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Record:
        """The sample with this id; IndexError outside 0 to len - 1, BrokenSample where it cannot be used."""
