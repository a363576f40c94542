# SPDX-License-Identifier: Apache-2.0
"""A run's metrics.jsonl as time series."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit.report.curves import Chart, Series, shares, short


@dataclass
class History:
    """What the run logged, by kind. After a resume a step can be logged twice: the later line counts.

    `unreadable` counts lines that are no JSON object, such as the last one of a run that was killed while writing it.
    """

    train: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    unreadable: int = 0

    def series(self, key: str, label: str = "") -> Series:
        """Training values of `key` against the step."""
        return Series(label or key, [(line["step"], line[key]) for line in self.train if _is_number(line.get(key))])

    @property
    def last(self) -> dict[str, Any]:
        """The last training line, empty if there is none."""
        return self.train[-1] if self.train else {}


def read_history(path: Path) -> History:
    """Read metrics.jsonl; a missing file is an empty history."""
    history = History()
    by_kind: dict[str, dict[float, dict[str, Any]]] = {"train": {}, "eval": {}}
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        line = _parse(text)
        if line is None:
            history.unreadable += 1
        elif line.get("kind") in by_kind and _is_number(line.get("step")):
            by_kind[line["kind"]][line["step"]] = line
        elif line.get("kind") == "event":
            history.events.append(line)
    history.train = [by_kind["train"][step] for step in sorted(by_kind["train"])]
    history.evaluations = [by_kind["eval"][step] for step in sorted(by_kind["eval"])]
    return history


def charts(history: History, guessing: float | None) -> list[Chart]:
    """The curves of a run; those without data draw as nothing. `guessing` is the loss of a model that knows nothing."""
    found = [
        Chart(
            "loss",
            "Loss",
            [history.series("loss")],
            lambda value: f"{value:.3f}",
            reference=None if guessing is None else ("guessing", guessing),
        ),
        Chart("lr", "Learning rate", [history.series("lr")], short, from_zero=True),
        Chart("scale", "Logit scale", [history.series("logit_scale")], lambda value: f"{value:.2f}"),
        Chart(
            "speed",
            "Throughput, pairs a second",
            [history.series("samples_per_second")],
            lambda value: f"{value:,.0f}",
            from_zero=True,
        ),
        Chart("norm", "Gradient norm", [history.series("grad_norm")], lambda value: f"{value:.3g}", from_zero=True),
    ]
    recalls = _evaluation_series(history)
    if recalls:
        found.insert(
            1,
            Chart(
                "recall",
                "Right at first place",
                recalls,
                percent,
                axis=shares,
                from_zero=True,
            ),
        )
    return found


def percent(fraction: float) -> str:
    """A fraction of 1 as per cent: one decimal, more below one per cent so that a chance level stays visible."""
    if not math.isfinite(fraction):
        return "n/a"
    value = 100 * fraction
    return f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"


def _evaluation_series(history: History) -> list[Series]:
    """One line per R@1 or top@1 that evaluations logged, as fractions."""
    names: dict[str, list[tuple[float, float]]] = {}
    for line in history.evaluations:
        values = line.get("metrics", line)
        for key, value in values.items():
            parts = key.split("/")
            if parts[-1] in ("R@1", "top@1") and _is_number(value):
                names.setdefault(key, []).append((line["step"], value))
    return [Series(_readable(key), points) for key, points in names.items()]


def _readable(key: str) -> str:
    *name, last = key.split("/")
    arrows = {"image_to_text": "picture → caption", "text_to_image": "caption → picture"}
    return ", ".join(arrows.get(part, part) for part in name) if name else last


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
