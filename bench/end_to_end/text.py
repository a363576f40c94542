# SPDX-License-Identifier: Apache-2.0
"""docs/end-to-end.md as a function of result files, and the lines that a run prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.end_to_end.losses import LENIENCE
from bench.end_to_end.sides import OURS, PEER
from bench.end_to_end.timing import PARTS
from bench.numerics_text import ROOT, commit_name, table

DOCUMENT = ROOT / "docs" / "end-to-end.md"
TARGET_MODEL, TARGET = "ViT-B-32", 1.5
"""open_clip's time for a step over ours, with losses equal to rounding."""

Row = Mapping[str, Any]

_TOP = """# A whole training step

Written by `python -m bench.end_to_end --text {paths}`: do not edit.

Towers, loss and optimizer of one model, as this library's trainer puts them together and as open_clip's does with its
defaults: the same initial weights, batches, rates and precision (bf16 is autocast on both sides). `fused AdamW` is
open_clip with torch's fused optimizer, which its trainer does not ask for. What the sides are, and what packing alone
can give, is in [bench/end_to_end](../bench/end_to_end/__init__.py).

* **losses**: the largest difference of a step's loss over the run, and how far each side is from open_clip in the next
  wider precision. Equal to rounding: ours is at most {lenience:g} times as far from it as open_clip's own.
* **x clipkit's time**: over rounds in which each side made one step on the same batch, the median; in brackets the
  least and the most. Compiled sides are compared with ours compiled.
* **peak**: MiB at the peak of a step in a process of its own, weights and optimizer state included; on a CPU what is
  resident beyond the imported libraries.
* **GFLOP**: matrix products of a step as that side computes them. **utilisation**: the GFLOP that a step needs (ours:
  no padding, no token that is not read), over the time, over the device's peak, the same numerator for both sides.
* Shares are of the sum of the parts, each timed alone; the last column is that sum over the whole step. Our loss makes
  its gradients in its forward.
"""


def document(results: Sequence[tuple[Path, Mapping[str, Any]]]) -> str:
    """The whole text, of (path, content) of result files."""
    shown = [_shown(path) for path, _ in results]
    parts = [_TOP.format(paths=" ".join(shown), lenience=LENIENCE)]
    for name, (_, result) in zip(shown, results, strict=True):
        stamp, rows = result["environment"], result["rows"]
        parts.append(
            f"\n## {result['model']} on {stamp['device']}\n\n`{result['command']}`,\n[{name}](../{name}): "
            f"{stamp['cpu']} ({stamp['cpu_capability']}), {stamp['threads']} threads, torch {stamp['torch']}, "
            f"open_clip {result['open_clip'] or 'not installed'}, commit {commit_name(stamp['commit'])}.\n"
        )
        parts += [f"\n{sentence}\n" for sentence in target_sentences(result)]
        parts += [_losses(result["comparisons"]), _speed(rows), _shares(rows), _reasons(rows)]
    return "".join(parts)


def target_sentences(result: Mapping[str, Any]) -> list[str]:
    """Whether the target is met, in every case of the model that has one."""
    equal = {entry["precision"]: entry["equal_to_rounding"] for entry in result["comparisons"]}
    sentences = []
    for row in _measured(result["rows"]):
        if row["model"] != TARGET_MODEL or row["side"] != PEER:
            continue
        ratio, precision = row["over_clipkit"]["median"], row["precision"]
        losses = {True: "equal to rounding", False: "different", None: "not compared"}[equal.get(precision)]
        met = ratio >= TARGET and equal.get(precision) is True
        sentences.append(
            f"Target, {precision}, batch {row['batch']}: at least {TARGET:g} times open_clip's samples per second, "
            f"equal losses. {'Met' if met else 'Not met'}: {ratio:.2f}, losses {losses}."
        )
    return sentences


def line(row: Row) -> str:
    """A row as a run prints it."""
    case = f"{row['model']} {row['precision']}" + (f" batch {row['batch']}" if row["batch"] else "")
    if row["reason"]:
        return f"{case}, {row['side']}: left out: {row['reason']}"
    shares = _share_cells(row)
    memory = f", {row['peak_mib']:,.0f} MiB" if row["peak_mib"] else ""
    parts = ", ".join(f"{part} {share}" for part, share in zip(PARTS, shares, strict=False)) if shares else "none"
    return (
        f"{case}, {row['side']}: {row['samples_per_second']:.2f} samples/s, {_spread(row['seconds'], 3)} s, "
        f"{_spread(row['over_clipkit'], 2)} x clipkit's time{memory}, utilisation {row['utilisation']:.1%} of "
        f"{row['peak_gflop_per_second']:,.0f} GFLOP/s ({row['peak_source']}); parts: {parts}"
    )


def _losses(comparisons: Sequence[Row]) -> str:
    lines = [
        [
            entry["precision"],
            f"{entry['batch']} x {entry['steps']}",
            f"{entry['losses'][OURS][0]:.3f} to {entry['losses'][OURS][-1]:.3f}",
            f"{entry['max_difference']:.1e}",
            f"{entry['our_error']:.1e}",
            f"{entry['peer_error']:.1e}",
            "yes" if entry["equal_to_rounding"] else "NO",
        ]
        for entry in comparisons
    ]
    head = [
        "losses",
        "pairs x steps",
        "from, to",
        "largest difference",
        "our error",
        "open_clip's",
        "equal to rounding",
    ]
    return f"\n{table(head, lines)}" if lines else "\nThe losses were not compared.\n"


def _speed(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["precision"],
            str(row["batch"]),
            row["side"],
            f"{row['samples_per_second']:.2f}",
            _spread(row["seconds"], 3),
            _spread(row["over_clipkit"], 2),
            f"{row['peak_mib']:,.0f}" if row["peak_mib"] else "not known",
            f"{row['gflop']:,.0f}",
            f"{row['utilisation']:.1%}",
        ]
        for row in _measured(rows)
    ]
    if not lines:
        return ""
    head = ["step", "batch", "side", "samples/s", "seconds", "x clipkit's time", "peak MiB", "GFLOP", "utilisation"]
    peaks = {
        row["precision"]: f"{row['precision']} {row['peak_gflop_per_second']:,.0f} GFLOP/s ({row['peak_source']})"
        for row in _measured(rows)
    }
    tokens = next(iter(_measured(rows)))["caption_tokens"]
    notes = f"Captions have {tokens:.1f} tokens on average. Peak: {', '.join(peaks.values())}."
    return f"\n{table(head, lines)}\n{notes}\n"


def _shares(rows: Sequence[Row]) -> str:
    lines = []
    for row in _measured(rows):
        cells = _share_cells(row)
        if cells:
            lines.append([row["precision"], str(row["batch"]), row["side"], *cells])
    return f"\n{table(['parts', 'batch', 'side', *PARTS, 'sum / step'], lines)}" if lines else ""


def _share_cells(row: Row) -> list[str]:
    """The share of each part, and their sum over the step."""
    if row["parts"] is None:
        return []
    total = sum(row["parts"].values())
    return [*(f"{row['parts'][part] / total:.1%}" for part in PARTS), f"{total / row['seconds']['median']:.2f}"]


def _reasons(rows: Sequence[Row]) -> str:
    left_out = [line(row) for row in rows if row["reason"]]
    return "".join(f"\n{words}\n" for words in left_out)


def _measured(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if not row["reason"]]


def _spread(summary: Mapping[str, float], digits: int) -> str:
    return f"{summary['median']:.{digits}f} [{summary['min']:.{digits}f}, {summary['max']:.{digits}f}]"


def _shown(path: Path) -> str:
    name = path.resolve()
    return name.relative_to(ROOT).as_posix() if name.is_relative_to(ROOT) else path.name
