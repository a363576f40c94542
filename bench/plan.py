# SPDX-License-Identifier: Apache-2.0
"""Which cases a run measures: the device's own table by default, or what the options ask for."""

from __future__ import annotations

from dataclasses import dataclass

from bench.cases import Case

BOTH = "fwd+bwd"


@dataclass(frozen=True)
class Plan:
    """Cases in the order in which they are measured, and those in which variants that compile are (None: all)."""

    cases: tuple[Case, ...]
    budget: float
    compiled: frozenset[Case] | None = None


def default_plan(device: str) -> Plan:
    """The table of two CPU cores in under eight minutes, the table of a card in under ten.

    What a target is about comes first, so that a machine that is slower than expected leaves out the rest.
    """
    if device == "cpu":
        return Plan(
            (
                *_cases("clip", (1024, 2048, 4096, 8192), 512, "float32"),
                *_cases("clip", (2048, 8192), 512, "bfloat16"),
                *_cases("siglip", (4096,), 512, "float32"),
                *_cases("clip", (4096,), 512, "float32", "fwd"),
                *_cases("crd", (2048,), 512, "float32"),
                *_cases("icl", (2048,), 512, "float32"),
                *_cases("global_contrastive", (2048,), 512, "float32"),
                *_cases("clip", (32768, 16384), 512, "float32"),
            ),
            budget=420,
            compiled=frozenset(_cases("clip", (8192,), 512, "float32")),
        )
    return Plan(
        (
            *_cases("clip", (65536,), 768, "bfloat16"),
            *_cases("clip", (32768, 8192, 262144, 1048576), 512, "bfloat16"),
            *_cases("siglip", (65536,), 768, "bfloat16"),
            *_cases("clip", (16384, 65536, 131072), 512, "bfloat16"),
            *_cases("siglip", (32768,), 512, "bfloat16"),
            *_cases("clip", (8192, 32768), 768, "bfloat16"),
            *_cases("clip", (32768,), 512, "bfloat16", "fwd"),
            *_cases("clip", (32768,), 512, "float32"),
            *_cases("crd", (32768,), 512, "bfloat16"),
        ),
        budget=540,
        compiled=frozenset(_cases("clip", (32768,), 512, "bfloat16")),
    )


def quick_plan(device: str) -> Plan:
    """A look in less than a minute."""
    size = 2048 if device == "cpu" else 16384
    dtype = "float32" if device == "cpu" else "bfloat16"
    cases = (*_cases("clip", (size // 2, size), 512, dtype), *_cases("siglip", (size,), 512, dtype))
    return Plan(cases, budget=60, compiled=frozenset())


def chosen_plan(
    losses: list[str], sizes: list[int], widths: list[int], dtypes: list[str], directions: list[str], budget: float
) -> Plan:
    """Every combination, small batches first."""
    cases = [
        Case(loss, rows, width, dtype, direction)
        for rows in sizes
        for loss in losses
        for width in widths
        for dtype in dtypes
        for direction in directions
    ]
    return Plan(tuple(cases), budget)


def _cases(loss: str, sizes: tuple[int, ...], width: int, dtype: str, direction: str = BOTH) -> list[Case]:
    return [Case(loss, rows, width, dtype, direction) for rows in sizes]
