# SPDX-License-Identifier: Apache-2.0
"""What the library is meant to reach, and whether a run's rows reach it: met, missed by how much, or not measured and
why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Target:
    """A figure of one row (loss "clip", forward plus backward), or of it over another row of the same case.

    Attributes:
        device: "cpu" or "cuda".
        what: in words.
        case: (N, d, dtype); None for the worst of all cases.
        variant: whose row.
        figure: row, other row -> a number.
        bound: what the number is held against.
        at_most: it must not exceed the bound; otherwise it must not fall below.
        versus: the other row's variant.
    """

    device: str
    what: str
    case: tuple[int, int, str] | None
    variant: str
    figure: Callable[[Row, Row], float]
    bound: float
    at_most: bool = True
    versus: str | None = None


def _milliseconds(row: Row, other: Row) -> float:
    return 1e3 * row["seconds"]["median"]


def _times_faster(row: Row, other: Row) -> float:
    return other["seconds"]["median"] / row["seconds"]["median"]


def _floor_share(row: Row, other: Row) -> float:
    return row["floor_share"]


def _times_the_floor(row: Row, other: Row) -> float:
    return 1 / row["floor_share"]


def _extra_mib(row: Row, other: Row) -> float:
    return row["extra_mib"]


def _workspace_mib(row: Row, other: Row) -> float:
    """Without the two gradients [N, d] that every method returns."""
    return row["extra_mib"] - 2 * row["N"] * row["d"] * BYTES[row["dtype"]] / 2**20


def _memory_share(row: Row, other: Row) -> float:
    return row["extra_mib"] / other["extra_mib"]


_CPU, _HALF = (8192, 512, "float32"), (8192, 512, "bfloat16")
_LARGE, _CARD, _MILLION = (65536, 768, "bfloat16"), (32768, 512, "bfloat16"), (1048576, 512, "bfloat16")

TARGETS = (
    Target("cpu", "times faster than open_clip", _CPU, "clipkit", _times_faster, 2.0, False, "open_clip"),
    Target("cpu", "times the four units", _CPU, "clipkit", _times_the_floor, 1.25),
    Target("cpu", "of open_clip's extra memory", _CPU, "clipkit", _memory_share, 0.1, True, "open_clip"),
    Target("cpu", "times faster than open_clip", _HALF, "clipkit", _times_faster, 3.0, False, "open_clip"),
    Target("cpu", "times the four units", _HALF, "clipkit", _times_the_floor, 1.25),
    Target("cpu", "of open_clip's extra memory", _HALF, "clipkit", _memory_share, 0.1, True, "open_clip"),
    Target("cpu", "MiB of extra memory", (32768, 512, "float32"), "clipkit", _extra_mib, 1024.0),
    Target("cuda", "ms with Triton", _LARGE, "clipkit:triton", _milliseconds, 50.0),
    Target("cuda", "ms with CUDA", _LARGE, "clipkit:cuda", _milliseconds, 43.0),
    Target("cuda", "of the four units' speed", _CARD, "clipkit:triton", _floor_share, 0.7, False),
    Target(
        "cuda", "times faster than torch.compile", _CARD, "clipkit:triton", _times_faster, 3.0, False, "torch.compile"
    ),
    Target("cuda", "times faster than inf-cl", _CARD, "clipkit:triton", _times_faster, 5.0, False, "inf-cl"),
    Target("cuda", "MiB besides the gradients, at any N", None, "clipkit:triton", _workspace_mib, 512.0),
    Target("cuda", "ms, N of a million on one card", _MILLION, "clipkit:triton", _milliseconds, float("inf")),
)


def judge(rows: Iterable[Row], device: str) -> list[dict[str, Any]]:
    """One entry for each target: {"target", "bound", "status", "measured", "missed_by"}.

    `status` is "met", "missed" or a sentence that begins with "not measured". `missed_by` is how far the figure is from
    the bound, in parts of the bound.
    """
    kept = [row for row in rows if row["loss"] == "clip" and row["direction"] == "fwd+bwd"]
    return [_judge(target, kept, device) for target in TARGETS]


def _judge(target: Target, rows: list[Row], device: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "target": _sentence(target),
        "bound": target.bound if target.bound != float("inf") else None,
        "measured": None,
        "missed_by": None,
    }
    if device != target.device:
        missing = "no GPU was at hand" if target.device == "cuda" else "the run was on a card"
        return {**entry, "status": f"not measured: {missing}"}
    figures, why_not = _figures(target, rows)
    if why_not:
        return {**entry, "status": f"not measured: {why_not}"}
    worst = max(figures) if target.at_most else min(figures)
    entry["measured"] = round(worst, 4)
    if worst <= target.bound if target.at_most else worst >= target.bound:
        return {**entry, "status": "met"}
    return {**entry, "status": "missed", "missed_by": round(abs(worst - target.bound) / target.bound, 4)}


def _figures(target: Target, rows: list[Row]) -> tuple[list[float], str | None]:
    """The target's figures, or why there are none."""
    here = [row for row in rows if target.case in (None, (row["N"], row["d"], row["dtype"]))]
    mine = [row for row in here if row["variant"] == target.variant]
    if not mine:
        return [], f"the run has no row of {target.variant} there"
    figures = []
    for row in mine:
        other = row
        if target.versus:
            others = [each for each in here if each["variant"] == target.versus]
            if not others:
                return [], f"the run has no row of {target.versus} there"
            other = others[0]
        for needed in (row, other):
            if needed["seconds"] is None:
                return [], f"{needed['variant']}: {needed['reason']}"
        if None in (row["extra_mib"], other["extra_mib"]) and target.figure in (
            _extra_mib,
            _memory_share,
            _workspace_mib,
        ):
            return [], "peak memory is not known here"
        figures.append(target.figure(row, other))
    return figures, None


def _sentence(target: Target) -> str:
    where = "every case" if target.case is None else "N = {:,}, d = {}, {}".format(*target.case)
    if target.bound == float("inf"):
        return f"{where}: completes ({target.what})"
    return f"{where}: {'at most' if target.at_most else 'at least'} {target.bound:g} {target.what}"
