# SPDX-License-Identifier: Apache-2.0
"""Line charts as inline SVG: no script, no font, no colour of their own (the page's style gives those by class)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# Drawn at about the size it is shown at in a column of the page, so that text inside is as large as the text around it.
WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 26
MAX_POINTS = 200

Point = tuple[float, float]


def short(value: float, digits: int = 3) -> str:
    """A number as an axis writes it: 0.001, 1.5, 200, 12k, 3M."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.{digits}g}M"
    if size >= 1e4:
        return f"{value / 1e3:.{digits}g}k"
    if 0 < size < 1e-2:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.{max(digits, 4)}g}"


def shares(fraction: float, digits: int = 3) -> str:
    """A fraction of 1 as an axis writes per cent."""
    return f"{short(100 * fraction, digits)} %"


@dataclass(frozen=True)
class Series:
    """One line: (x, y) points with x rising. Values that are not finite break the line."""

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """One figure. `reference` is a dotted level (label, y); `form` writes a value, `axis` a tick to so many digits."""

    name: str
    title: str
    series: Sequence[Series]
    form: Callable[[float], str]
    axis: Callable[[float, int], str] = short
    note: str = ""
    reference: tuple[str, float] | None = None
    from_zero: bool = False


def draw(chart: Chart) -> str:
    """The chart as a `<figure>`; an empty string if no series holds a finite value."""
    shown = [Series(one.label, _finite(one.points)) for one in chart.series]
    shown = [one for one in shown if one.points]
    if not shown:
        return ""
    x_low, x_high = _range([x for one in shown for x, _ in one.points])
    levels = [y for one in shown for _, y in one.points]
    if chart.reference is not None:
        levels.append(chart.reference[1])
    y_ticks = ticks(0.0 if chart.from_zero else min(levels), max(levels))
    # Steps are whole: a tick between two of them would name a step that never was.
    x_ticks = [tick for tick in ticks(x_low, x_high) if x_low <= tick <= x_high and tick == int(tick)]
    frame = _Frame(x_low, x_high, y_ticks[0], y_ticks[-1])
    parts = [_axes(frame, x_ticks, y_ticks, chart.axis)]
    if chart.reference is not None:
        parts.append(_reference(frame, *chart.reference))
    parts.extend(_line(frame, one.points, number) for number, one in enumerate(shown))
    title_id, text_id = f"{chart.name}-title", f"{chart.name}-text"
    return (
        f'<figure class="chart"><figcaption><span class="name">{escape(chart.title)}</span>'
        f"{_legend(shown, chart.form)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{title_id} {text_id}">'
        f'<title id="{title_id}">{escape(chart.title)}</title>'
        f'<desc id="{text_id}">{escape(_description(shown, chart.form))}</desc>{"".join(parts)}</svg>'
        + (f'<p class="note">{escape(chart.note)}</p>' if chart.note else "")
        + "</figure>"
    )


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers, evenly spaced, that cover [low, high]; about `wanted` intervals."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[tuple[float, float, float, float]]:
    """At most `limit` rows (x, mean, lowest, highest): runs of neighbouring points are put together."""
    size = max(-(-len(points) // limit), 1)
    rows = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        values = [y for _, y in part]
        rows.append((part[-1][0], sum(values) / len(values), min(values), max(values)))
    return rows


@dataclass(frozen=True)
class _Frame:
    """From data to the drawing's units."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return round(LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM), 1)


def _axes(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], axis: Callable[[float, int], str]) -> str:
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{frame.y(tick)}" y2="{frame.y(tick)}"/>'
        f'<text x="{LEFT - 7}" y="{frame.y(tick) + 3.5}" text-anchor="end">{escape(label)}</text>'
        for tick, label in zip(y_ticks, _labels(y_ticks, axis), strict=True)
    ]
    for number, (tick, label) in enumerate(zip(x_ticks, _labels(x_ticks, short), strict=True)):
        x = frame.x(tick)
        anchor = "end" if x > WIDTH - RIGHT - 14 else "start" if number == 0 and x < LEFT + 4 else "middle"
        lines.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="{anchor}">{label}</text>')
    return "".join(lines)


def _labels(values: Sequence[float], axis: Callable[[float, int], str]) -> list[str]:
    """With as many digits as it takes to tell neighbours apart."""
    labels: list[str] = []
    for digits in range(3, 10):
        labels = [axis(value, digits) for value in values]
        if len(set(labels)) == len(labels):
            break
    return labels


def _reference(frame: _Frame, label: str, level: float) -> str:
    y = frame.y(level)
    below = y < TOP + 16
    return (
        f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{WIDTH - RIGHT}" y="{y + 12 if below else y - 5}" text-anchor="end">{escape(label)}</text>'
    )


def _line(frame: _Frame, points: Sequence[Point], number: int) -> str:
    rows = thin(points)
    place = [(frame.x(x), frame.y(mean)) for x, mean, _, _ in rows]
    style = f"s{number % 4}"
    if len(place) == 1:
        return f'<circle class="dot {style}" cx="{place[0][0]}" cy="{place[0][1]}" r="3.5"/>'
    drawn = ""
    if len(rows) < len(points):
        upper = [f"{frame.x(x)},{frame.y(high)}" for x, _, _, high in rows]
        lower = [f"{frame.x(x)},{frame.y(low)}" for x, _, low, _ in reversed(rows)]
        drawn = f'<polygon class="band {style}" points="{" ".join(upper + lower)}"/>'
    path = " ".join(f"{x},{y}" for x, y in place)
    return f'{drawn}<polyline class="line {style}" points="{path}"/>' + (
        "".join(f'<circle class="dot {style}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in place)
        if len(place) <= 12
        else ""
    )


def _legend(shown: Sequence[Series], form: Callable[[float], str]) -> str:
    if len(shown) == 1:
        return f'<span class="last">{escape(form(shown[0].points[-1][1]))}</span>'
    keys = "".join(
        f'<li><svg class="key" viewBox="0 0 22 8" aria-hidden="true"><line class="line s{number % 4}" '
        f'x1="1" x2="21" y1="4" y2="4"/></svg>{escape(one.label)} <b>{escape(form(one.points[-1][1]))}</b></li>'
        for number, one in enumerate(shown)
    )
    return f'<ul class="legend">{keys}</ul>'


def _description(shown: Sequence[Series], form: Callable[[float], str]) -> str:
    sentences = []
    for one in shown:
        (first_x, first_y), (last_x, last_y) = one.points[0], one.points[-1]
        lowest, highest = min(y for _, y in one.points), max(y for _, y in one.points)
        name = f"{one.label}: " if len(shown) > 1 else ""
        sentences.append(
            f"{name}{form(first_y)} at step {first_x:g}, {form(last_y)} at step {last_x:g}; "
            f"lowest {form(lowest)}, highest {form(highest)}."
        )
    return " ".join(sentences)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)
