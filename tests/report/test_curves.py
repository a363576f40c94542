# SPDX-License-Identifier: Apache-2.0
"""Curves and series: ticks that cover and differ, odd data drawn or left out, logs of killed and resumed runs."""

from __future__ import annotations

import itertools
import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from clipkit.report.curves import Chart, Series, draw, short, thin, ticks
from clipkit.report.metrics import charts, percent, read_history
from clipkit.report.report import duration


def chart_of(points: list[tuple[float, float]], **settings: object) -> Chart:
    return Chart("loss", "Loss", [Series("loss", points)], lambda value: f"{value:.2f}", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "low, high", [(0, 1), (4.2, 4.61), (-3, 7), (0, 1e-4), (14.21, 14.26), (5, 5), (0, 0), (1, 1e6)]
)
def test_ticks_cover_the_range_evenly(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 8
    steps = [second - first for first, second in itertools.pairwise(found)]
    assert max(steps) == pytest.approx(min(steps))


def test_numbers_on_axes_are_short() -> None:
    written = [short(value) for value in (0, 0.5, 5e-4, 2.5e-5, 100, 1500, 12_000, 3e6, -0.25)]
    assert written == ["0", "0.5", "5e-4", "2.5e-5", "100", "1500", "12k", "3M", "-0.25"]


def test_neighbouring_ticks_are_told_apart() -> None:
    drawn = draw(chart_of([(1, 14.2851), (10, 14.2852)]))
    labels = [text for text in _texts(drawn) if text.startswith("14.")]
    assert len(labels) == len(set(labels)) > 2


def test_a_chart_is_well_formed_and_says_what_it_shows() -> None:
    drawn = draw(chart_of([(1, 3.0), (2, 2.0), (5, 1.5)], reference=("guessing", 2.5)))
    figure = ElementTree.fromstring(drawn)
    image = figure.find("svg")
    assert image is not None
    assert image.get("role") == "img"
    identifiers = (image.get("aria-labelledby") or "").split()
    assert [figure.find(f".//*[@id='{one}']") is not None for one in identifiers] == [True, True]
    assert "3.00 at step 1, 1.50 at step 5; lowest 1.50, highest 3.00." in drawn


def test_one_point_is_a_dot_and_no_point_is_nothing() -> None:
    assert "<circle" in draw(chart_of([(1, 3.0)]))
    assert draw(chart_of([])) == ""
    assert draw(chart_of([(1, math.nan), (2, math.inf)])) == ""


def test_labels_are_escaped() -> None:
    hostile = '<script>alert("x")</script>'
    chart = Chart("a", hostile, [Series(hostile, [(1, 1)]), Series("b", [(1, 2)])], str, reference=(hostile, 1.5))
    assert "<script" not in draw(chart)
    ElementTree.fromstring(draw(chart))


def test_thinning_keeps_the_extremes() -> None:
    points = [(float(step), 1.0) for step in range(1000)]
    points[500] = (500.0, 9.0)
    rows = thin(points, 100)
    assert len(rows) <= 100
    assert max(high for *_, high in rows) == 9.0
    assert "band" in draw(chart_of(points))


def test_history_survives_kill_and_resume(tmp_path: Path) -> None:
    lines = [
        {"kind": "train", "step": 1, "loss": 3.0},
        {"kind": "train", "step": 2, "loss": 2.5},
        {"kind": "train", "step": 2, "loss": 2.0},
        {"kind": "train", "step": 3, "loss": None},
        {"kind": "eval", "step": 2, "metrics": {"seen/image_to_text/R@1": 0.5, "birds/top@1": 0.25}},
        {"kind": "event", "step": 2, "event": "preempted"},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + '\n[1]\n{"kind": "tr', encoding="utf-8")
    history = read_history(path)
    assert history.series("loss").points == [(1, 3.0), (2, 2.0)]
    assert (len(history.events), history.unreadable) == (1, 2)
    recall = next(chart for chart in charts(history, None) if chart.name == "recall")
    assert [one.label for one in recall.series] == ["seen, picture → caption", "birds"]
    assert read_history(tmp_path / "none.jsonl").train == []


def test_shares_and_times_as_words() -> None:
    assert [percent(share) for share in (0, 1 / 1594, 0.0063, 0.318, 1, math.nan)] == [
        "0 %", "0.063 %", "0.63 %", "31.8 %", "100.0 %", "n/a",
    ]  # fmt: skip
    times = [duration(seconds).replace("\N{NO-BREAK SPACE}", " ") for seconds in (48.4, 341, 10_920)]
    assert times == ["48 s", "5 min 41 s", "3 h 02 min"]


def _texts(drawn: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(drawn).iter("text")]
