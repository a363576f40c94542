# SPDX-License-Identifier: Apache-2.0
"""The README's picture: time and memory of the CLIP loss, forward plus backward, against the batch, peers named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "figures"
LEAST_SIZES = 3
COLORS = ("#b23a48", "#c98b2b", "#4d6fa8", "#7b5ea7", "#3d9aa1", "#a05a2c", "#c2619c", "#6b7a3a")
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")

Rows = list[Mapping[str, Any]]


def figure_path(result: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """The README's file for a CPU's run, one of its own for a card's."""
    device = result["environment"]["device"]
    return folder / ("loss_scaling.svg" if device.startswith("cpu") else f"loss_scaling_{device}.svg")


def drawable(rows: Rows) -> Rows:
    """The timed rows of the width and dtype that were measured at most sizes; none below three sizes."""
    timed = [r for r in rows if (r["loss"], r["direction"]) == ("clip", "fwd+bwd") and r["seconds"]]
    sizes = Counter({key: len({r["N"] for r in timed if (r["d"], r["dtype"]) == key}) for key in _kinds(timed)})
    if not sizes or sizes.most_common(1)[0][1] < LEAST_SIZES:
        return []
    best = sizes.most_common(1)[0][0]
    return [r for r in timed if (r["d"], r["dtype"]) == best]


def _kinds(rows: Rows) -> list[tuple[int, str]]:
    return list(dict.fromkeys((r["d"], r["dtype"]) for r in rows))


def draw(result: Mapping[str, Any], path: Path) -> bool:
    """Draw a result file's rows; False where they have too few sizes for a curve."""
    rows = drawable(result["rows"])
    if not rows:
        return False
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "clipkit"
    from matplotlib import pyplot

    figure, (time_axis, memory_axis) = pyplot.subplots(1, 2, figsize=(9, 3.9))
    for name, style in _styles(rows).items():
        mine = sorted((r for r in rows if r["variant"] == name), key=lambda r: r["N"])
        time_axis.plot([r["N"] for r in mine], [r["seconds"]["median"] for r in mine], **style)
        known = [r for r in mine if r["extra_mib"]]
        if known:
            memory_axis.plot([r["N"] for r in known], [r["extra_mib"] for r in known], **style)
    sizes = sorted({r["N"] for r in rows})
    for axis, title, unit in ((time_axis, "time", "seconds"), (memory_axis, "extra memory", "MiB")):
        axis.set(xscale="log", yscale="log", xlabel="global batch N", ylabel=unit, title=f"{title}, forward + backward")
        axis.set_xticks(sizes, [_short(size) for size in sizes], minor=False)
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.grid(alpha=0.25)
    time_axis.legend(frameon=False, fontsize=7)
    figure.text(0.5, 0.005, _caption(result, rows), ha="center", fontsize=7, color="#555")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def _styles(rows: Rows) -> dict[str, dict[str, Any]]:
    """clipkit bold and green, the floor dotted grey, peers in a colour and a mark each."""
    styles: dict[str, dict[str, Any]] = {}
    ours = others = 0
    for name in dict.fromkeys(r["variant"] for r in rows):
        if name == "floor":
            units = rows[0]["floor_units"]
            styles[name] = {"color": "#777", "linestyle": ":", "label": f"floor: {units} matrix products"}
        elif name.startswith("clipkit"):
            line = ("-", "--", "-.", ":")[ours % 4]
            styles[name] = {"color": "#0b6e4f", "marker": "o", "linewidth": 2.2, "linestyle": line, "label": name}
            ours += 1
        else:
            color, marker = COLORS[others % len(COLORS)], MARKERS[others % len(MARKERS)]
            styles[name] = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1, "label": name}
            others += 1
    return styles


def _short(size: int) -> str:
    return f"{size // 1024}k" if size >= 1024 and size % 1024 == 0 else str(size)


def _caption(result: Mapping[str, Any], rows: Rows) -> str:
    stamp = result["environment"]
    words = f"d = {rows[0]['d']}, {rows[0]['dtype']}, {stamp['device']}, torch {stamp['torch']}"
    return f"{words}, commit {str(stamp['commit'])[:9]}, {stamp['date']}"
