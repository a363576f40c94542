# SPDX-License-Identifier: Apache-2.0
"""The curves of bench.fastclip: accuracy on the tests against pairs seen, mean and standard error over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.fastclip_methods import METHODS

FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "fastclip-emoji.svg"
PANELS = {
    "seen": "style never seen: R@5, %",
    "unseen": "concept never seen: R@5, %",
    "classes": "zero-shot classes: top-1, %",
}
STYLES: Mapping[str, Mapping[str, Any]] = {
    "openclip": {"color": "#222222", "linewidth": 2.2},
    "sogclr": {"color": "#4d6fa8", "linestyle": "--"},
    "v1": {"color": "#4d6fa8"},
    "isogclr": {"color": "#c98b2b", "linestyle": "--"},
    "v2": {"color": "#c98b2b"},
    "v0": {"color": "#7b5ea7"},
    "v3": {"color": "#0b6e4f", "linewidth": 2.2},
}
"""A constant inner rate is dashed beside the same method with the cosine."""


def score(point: Mapping[str, float], panel: str) -> float:
    """What a panel and the table show of an evaluation, a fraction of 1; retrieval is the mean of both directions."""
    if panel == "classes":
        return point["classes/top@1"]
    return recall(point, panel, 5)


def recall(point: Mapping[str, float], name: str, depth: int) -> float:
    """R@depth of a retrieval set, the mean of both directions."""
    return statistics.fmean(point[f"{name}/{way}/R@{depth}"] for way in ("image_to_text", "text_to_image"))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error over the seeds (NaN for a single one)."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def curve(rows: Sequence[Mapping[str, Any]], method: str, panel: str) -> list[tuple[int, float, float]]:
    """(pairs seen, mean, standard error) of a method at each evaluation."""
    runs = [row["curve"] for row in rows if row["method"] == method]
    return [
        (points[0]["samples"], *mean_and_error([score(point, panel) for point in points]))
        for points in zip(*runs, strict=True)
    ]


def pairs_to_reach(points: Sequence[tuple[int, float, float]], goal: float) -> float:
    """Pairs seen where a curve first has a mean of `goal`, by straight lines between its points; infinite if never."""
    before = (0, 0.0)
    for samples, mean, _ in points:
        if mean >= goal:
            rise = mean - before[1]
            return samples if rise == 0 else before[0] + (samples - before[0]) * (goal - before[1]) / rise
        before = (samples, mean)
    return math.inf


def draw(result: Mapping[str, Any], path: Path = FIGURE) -> Path:
    """Draw a result file's curves."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "clipkit"
    from matplotlib import pyplot

    rows = result["rows"]
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(11, 3.9))
    for axis, (panel, title) in zip(axes, PANELS.items(), strict=True):
        for method, style in STYLES.items():
            points = curve(rows, method, panel)
            if points:
                x, mean, error = zip(*points, strict=True)
                axis.errorbar(
                    [n / 1000 for n in x],
                    [100 * value for value in mean],
                    [0 if math.isnan(value) else 100 * value for value in error],
                    label=METHODS[method].title,
                    elinewidth=0.8,
                    **{"linewidth": 1.2, **style},
                )
        axis.set(xlabel="pairs seen, thousands", title=title)
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize=8)
    stamp, seeds = result["environment"], len({row["seed"] for row in rows})
    words = f"mean and standard error over {seeds} seeds; {stamp['device']}, torch {stamp['torch']}, "
    figure.text(0.5, 0.005, f"{words}commit {str(stamp['commit'])[:9]}, {stamp['date']}", ha="center", fontsize=7)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
