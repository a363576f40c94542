# SPDX-License-Identifier: Apache-2.0
"""docs/numerics.md as a function of a result file of bench.numerics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "numerics.md"
DTYPES = ("float32", "bfloat16", "float16")
NOT_FINITE = "not finite"
ROUNDED = "exact, rounded"
"""The answer of float64, cast to the types that answers have: nothing can be better than this."""

Rows = list[Mapping[str, Any]]

_TOP = """# Numerics

Written by `{command}` from
[{result}](../{result}): do not edit.
Run on {device}, {cpu}, torch {torch}, commit {commit}.

Errors are against the definition in float64 on the same inputs, which were rounded to the dtype before: what is shown
is made by the computation. N = {N}, d = {d}.

* **loss**: |L - L₆₄| / L₆₄. **gradient**: ‖g - g₆₄‖ / ‖g₆₄‖ of image and text features, the larger. Gradients come in
  the features' dtype, so that in 16 bits none can be exact: `{rounded}` is float64's own answer, cast. Where the loss
  is tiny, float16's smallest numbers are too large for the gradient.
* `clipkit:NAME` is a backend by name; one that lacks a loss's sweeps runs those on `torch`. `clipkit:triton` is the
  kernels under Triton's interpreter, in fp32 and fp16 (it computes bfloat16 wrongly) unless the run was on a card.
* `torch` is the definition in plain torch in the same dtype, `open_clip` its module (version {open_clip}).
"""

_LEVELS = """
## CLIP, from opposed to learned pairs

Scale 50; every text is moved towards its image, or away from it, until the loss is the one in the first column. For
learned pairs the row's log-sum-exp and the positive's logit are numbers near 50: in fp32 their difference has no digits
left below 4e-6, and in bfloat16 below 0.25. clipkit never takes this difference (margin form).
"""

_SCALES = """
## CLIP, by scale

Pairs that are a little learned, the multiplier of the cosines from 1 to 200.
"""

_SHAPES = """
## CLIP, difficult data

All features in a narrow cone, as at the start of a training; and with every 37th image turned to the other side, whose
logits lie 180 nats below their neighbours'. Scale 100.
"""

_WORST = """
## Every family, the worst of all data

The largest error over all data sets above, for each dtype. Where the loss itself goes to zero on some data (learned
pairs), a relative error is the hardest measure.
"""


def document(result: Mapping[str, Any], path: Path) -> str:
    """The whole text."""
    rows, stamp = result["rows"], result["environment"]
    name = path.resolve()
    shown = name.relative_to(ROOT).as_posix() if name.is_relative_to(ROOT) else path.name
    parts = [
        _TOP.format(
            command=result["command"],
            result=shown,
            rounded=ROUNDED,
            N=result["N"],
            d=result["d"],
            device=stamp["device"],
            cpu=stamp["cpu"],
            torch=stamp["torch"],
            commit=commit_name(stamp["commit"]),
            open_clip=result["open_clip"] or "not installed",
        )
    ]
    for words, kind, head in ((_LEVELS, "level", "loss"), (_SCALES, "scale", "scale"), (_SHAPES, "shape", "data")):
        parts.append(words)
        chosen = [row for row in rows if row["family"] == "clip" and row["kind"] == kind]
        parts += [_section(dtype, [row for row in chosen if row["dtype"] == dtype], head) for dtype in DTYPES]
    parts.append(_WORST)
    parts += [_worst(dtype, [row for row in rows if row["dtype"] == dtype]) for dtype in DTYPES]
    return "".join(parts)


def commit_name(name: str | None) -> str:
    """A commit as documents show it; a plus tells of changes."""
    head, plus, _ = str(name).partition("+")
    return head[:9] + (" with changes" if plus else "")


def _section(dtype: str, rows: Rows, head: str) -> str:
    if not rows:
        return ""
    ways = list(rows[0]["errors"])
    lines = [[row["data"], *(_cell(row["errors"][way]) for way in ways)] for row in rows]
    return f"\n{dtype}, loss / gradient:\n\n{table([head, *ways], lines)}"


def _worst(dtype: str, rows: Rows) -> str:
    if not rows:
        return ""
    ways = list(dict.fromkeys(way for row in rows for way in row["errors"]))
    lines = []
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family]
        cells = []
        for way in ways:
            found = [row["errors"][way] for row in mine if way in row["errors"]]
            cells.append(_cell({n: _largest(e[n] for e in found) for n in ("loss", "gradient")}) if found else "")
        lines.append([family, *cells])
    return f"\n{dtype}, loss / gradient:\n\n{table(['family', *ways], lines)}"


def _largest(values: Iterable[float | None]) -> float | None:
    worst = max(math.inf if value is None else value for value in values)
    return None if math.isinf(worst) else worst


def _cell(errors: Mapping[str, float | None]) -> str:
    loss, gradient = (NOT_FINITE if errors[n] is None else f"{errors[n]:.1e}" for n in ("loss", "gradient"))
    return f"{loss} / {gradient}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
