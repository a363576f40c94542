# SPDX-License-Identifier: Apache-2.0
"""A run as text: measured rows, what was not measured and why, the targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

HEAD = (
    f"{'loss':19} {'N':>9} {'d':>5} {'dtype':9} {'direction':9} {'variant':29} "
    f"{'median ms':>11}  {'spread':21} {'extra MiB':>10}  floor"
)


def line(row: Mapping[str, Any]) -> str:
    """One measured row. The last column is the floor's time over this row's, and how many units the floor is."""
    times = row["seconds"]
    spread = f"[{1e3 * times['min']:.1f}, {1e3 * times['max']:.1f}]"
    memory = "" if row["extra_mib"] is None else f"{row['extra_mib']:.1f}"
    share = "" if row["floor_share"] is None else f"{row['floor_share']:.0%} of {row['floor_units']} units"
    return (
        f"{row['loss']:19} {row['N']:9,} {row['d']:5} {row['dtype']:9} {row['direction']:9} {row['variant']:29} "
        f"{1e3 * times['median']:11.1f}  {spread:21} {memory:>10}  {share}"
    ).rstrip()


def not_measured(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each variant and reason, with the cases it holds for."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["reason"]:
            case = f"{row['loss']} {row['N']:,}x{row['d']} {row['dtype']} {row['direction']}"
            found.setdefault((row["variant"], row["reason"]), []).append(case)
    return [f"{variant}: {reason} ({', '.join(cases)})" for (variant, reason), cases in found.items()]


def target_lines(targets: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each target."""
    lines = []
    for target in targets:
        words = target["status"]
        if target["measured"] is not None:
            words += f", {target['measured']:.4g}"
        if target["missed_by"] is not None:
            words += f" (by {target['missed_by']:.0%})"
        lines.append(f"{target['target']}: {words}")
    return lines
