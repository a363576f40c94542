# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/evaclip.md as functions of the result files of bench.evaclip and bench.evaclip_tries.

The rest of the page is written by hand. A table stands between two marks, by which it is found and replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.evaclip_methods import VARIANTS
from bench.evaclip_speed import TITLES
from bench.fastclip_text import COLUMNS, ROOT, Rows, percent, shown, table
from bench.numerics_text import commit_name

DOCUMENT = ROOT / "docs" / "evaclip.md"

_SPEED = """
Medians (least to most) of {steps} steps of {batch} pairs each, in turns, on one thread. Captions have {mean:.1f} tokens
on average, of {context}. Over {compared} steps the losses of padded and packed text differ by {difference:.1e} at most;
the last is {last:.4f}.
"""
_TRIES = """{train:,} pairs to train on for {epochs} epochs, one seed; {style:,} pictures of a held-out style and
{concepts:,} of held-out concepts to choose by.

"""


def write_document(result: Path, to: Path = DOCUMENT) -> Path:
    """Put the tables of a result file, and of the newest tries beside it, into the page."""
    tries = max(result.parent.glob("evaclip-tries-*.json"))
    to.write_text(filled(to.read_text(encoding="utf-8"), tables(result, tries)), encoding="utf-8")
    return to


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The page with each part between its marks.

    Raises:
        ValueError: a part without a place.
    """
    for name, part in parts.items():
        begin, end = f"<!-- {name}: bench.evaclip -->\n", f"<!-- end of {name} -->"
        place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        found = list(place.finditer(text))
        if len(found) != 1:
            raise ValueError(f"docs/evaclip.md: the marks of {name!r} are there {len(found)} times, not once")
        text = text[: found[0].start()] + begin + part + end + text[found[0].end() :]
    return text


def tables(result_path: Path, tries_path: Path) -> dict[str, str]:
    """Every part by name."""
    result, tries = (json.loads(path.read_text(encoding="utf-8")) for path in (result_path, tries_path))
    return {
        "source": _source(result, result_path, tries_path),
        "accuracy": _accuracy(result["rows"]),
        "differences": _differences(result["rows"]),
        "speed": _speed(result["speed"]),
        "tries": _tries(tries),
    }


def _source(result: Mapping[str, Any], path: Path, tries: Path) -> str:
    stamp, commits = result["environment"], {commit_name(row["commit"]) for row in result["rows"]}
    return (
        f"From {shown(path)} and {shown(tries)}, by `{result['command']}`:\n{stamp['device']}, {stamp['cpu']}, "
        f"torch {stamp['torch']}, commit {', '.join(sorted(commits))}.\n"
    )


def _accuracy(rows: Rows) -> str:
    lines = []
    for name, variant in VARIANTS.items():
        mine = [row["figures"] for row in rows if row["variant"] == name]
        lines.append([variant.title, *(percent([column(one) for one in mine]) for column in COLUMNS.values())])
    return table(["", *COLUMNS], lines)


def _differences(rows: Rows) -> str:
    base = {row["seed"]: row["figures"] for row in rows if row["variant"] == "recipe"}
    lines = []
    for name, variant in VARIANTS.items():
        mine = [row for row in rows if row["variant"] == name]
        if name != "recipe":
            values = [
                [column(row["figures"]) - column(base[row["seed"]]) for row in mine] for column in COLUMNS.values()
            ]
            lines.append([variant.title, *(percent(one, "+") for one in values)])
    return table(["", *COLUMNS], lines)


def _speed(speed: Mapping[str, Any]) -> str:
    lines = []
    for name, title in TITLES.items():
        ratio = speed["times the recipe's step"][name]
        spread = "" if name == "recipe" else f" ({ratio['min']:.2f} to {ratio['max']:.2f})"
        lines.append([title, f"{speed['samples per second'][name]:.0f}", f"{ratio['median']:.2f}{spread}"])
    return table(["", "samples a second", "times the recipe's step"], lines) + _SPEED.format(
        **speed["text"], **speed["padded less packed"], steps=speed["steps"], batch=speed["batch"]
    )


def _tries(tries: Mapping[str, Any]) -> str:
    lines = []
    for row in tries["rows"]:
        mark = "**" if VARIANTS[row["variant"]].chosen == row["try"] else ""
        lines.append([VARIANTS[row["variant"]].title, f"{mark}{row['try']}{mark}", f"{100 * row['score']:.2f}"])
    return _TRIES.format(**tries["split"], epochs=tries["epochs"]) + table(["", "try", "score"], lines)
