# SPDX-License-Identifier: Apache-2.0
"""What became of every parameter of a model and of every tensor of the checkpoints that its towers came from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

OTHER_TOWER = "of the other tower"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Resized:
    """A parameter that had another shape in the checkpoint, and how it was brought to the model's."""

    given: tuple[int, ...]
    wanted: tuple[int, ...]
    how: str

    def __str__(self) -> str:
        return f"{self.given} -> {self.wanted}, {self.how}"


@dataclass(frozen=True)
class TowerReport:
    """One tower, filled from one checkpoint.

    Every parameter (and running statistic) of the tower is in exactly one of `loaded`, `resized` and `skipped`, by our
    names; every tensor of the checkpoint in exactly one of `used` and `unused`, by the checkpoint's own.

    source, layout: where the tensors came from, and whose names they had.
    loaded: as the checkpoint has them, at most cut, joined or transposed by the layout, and cast.
    skipped: left as they were, each with the pattern of the skip list that says so.
    unused: each with the reason.
    """

    source: str
    layout: str
    loaded: tuple[str, ...]
    resized: Mapping[str, Resized]
    skipped: Mapping[str, str]
    used: tuple[str, ...]
    unused: Mapping[str, str]

    def summary(self) -> str:
        """How many of each, and where from."""
        counts = (f"{len(getattr(self, kind))} {kind}" for kind in ("loaded", "resized", "skipped"))
        return f"{', '.join(counts)}; {self.source} ({self.layout}), {len(self.unused)} of its tensors unused"

    def rows(self) -> list[tuple[str, str, str]]:
        """(what happened, name, detail); `*` stands for the numbers of blocks, or for the whole other tower."""
        return [
            *_grouped("loaded", ((name, "") for name in self.loaded)),
            *_grouped("resized", ((name, str(how)) for name, how in self.resized.items())),
            *_grouped("skipped", ((name, f"by {pattern!r}") for name, pattern in self.skipped.items())),
            *_grouped("unused", (("*" if why == OTHER_TOWER else name, why) for name, why in self.unused.items())),
        ]


@dataclass(frozen=True)
class TowersReport:
    """What `load_towers` did. str() is a table for people, `to_dict` names every tensor for machines.

    image, text: None where no checkpoint was given; then `untouched` has the names of that tower's parameters.
    """

    image: TowerReport | None
    text: TowerReport | None
    untouched: tuple[str, ...] = ()

    def towers(self) -> dict[str, TowerReport]:
        """The towers that were filled, by name."""
        return {name: one for name, one in (("image", self.image), ("text", self.text)) if one is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = []
        for name, tower in self.towers().items():
            rows = tower.rows()
            width = max((len(row[1]) for row in rows), default=0)
            lines.append(f"{name} tower: {tower.summary()}")
            lines += [f"  {what:8} {parameter:{width}}  {detail}".rstrip() for what, parameter, detail in rows]
        if self.untouched:
            lines.append(f"untouched: {len(self.untouched)} tensors of the tower without a checkpoint")
        return "\n".join(lines)


def _grouped(what: str, entries: Iterable[tuple[str, str]]) -> list[tuple[str, str, str]]:
    counts: dict[tuple[str, str], int] = {}
    for name, detail in entries:
        row = (_NUMBER.sub("*", name), detail)
        counts[row] = counts.get(row, 0) + 1
    return [
        (what, name, "; ".join(filter(None, (f"x {count}" if "*" in name else "", detail))))
        for (name, detail), count in counts.items()
    ]
