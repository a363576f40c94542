# SPDX-License-Identifier: Apache-2.0
"""docs/fastclip-communication.md as a function of a result file of bench.communication."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.numerics_text import ROOT, commit_name, table

DOCUMENT = ROOT / "docs" / "fastclip-communication.md"

_TOP = """# What FastCLIP sends between ranks

Written by `{command}` from
[{result}](../{result}): do not edit.
torch {torch} on gloo, open_clip {open_clip}, commit {commit}.

All figures are bytes for each rank in one step, as a ring moves them: of an all-gather what a rank receives, of a
reduce-scatter what it sends, K - 1 messages each; an all-reduce moves 2 (K-1)/K of its tensor. What DDP or FSDP send
for the weights comes on top, for every method alike.

* **features**: rows as wide as the embedding, and gradients of such rows, in the forward.
* **samples**: a few numbers for each sample, in the forward.
* **backward**: everything that the backward sends.
* **agreement**: messages of 40 bytes in which ranks agree on row counts and settings, so that a mistake raises on every
  rank instead of hanging. open_clip has none.
"""

_MEASURED = """
## Counted

b = {b} rows on each of K ranks, d = {d}, fp32. Every function of torch.distributed was wrapped and one step run. In a
row that says yes all four figures are those of the formulas that the last section uses.

`gradient` is this rank's feature gradient after DDP's mean over ranks, against float64 of the whole batch in one
process: cosine and ratio of norms. Neither flag scales it by 1/K; `local_loss` alone loses the part that crosses ranks.
"""

_SENT = """
The collectives of one step, by name and phase (the backward of open_clip's gather is a reduce-scatter on NCCL; gloo
makes it of K scatters for each tower, the same bytes):

"""

_SETTINGS = """
## At the published settings

By the same formulas; KiB for each rank and step. `weights` is DDP's all-reduce of fp32 gradients. Rows `published code`
are that code's messages as its source has them, not run here: it sends both towers in fp32, two copies of the sample's
index, and the new state of every sample (2 numbers, v2: 12); FastCLIPLoss sends the index once and the state's owner
makes the rest, but every rank also gets each sample's share of the loss and of the temperature's gradient, which makes
both global and equal everywhere.

Against open_clip's exact modes half of the features' bytes are saved, and none is left in the backward. Beside
`clipkit.clip_loss`, which gathers one tower and reduce-scatters the other's gradient, nothing is saved in bytes:
of FastCLIP's, half can travel before the loss, where the text tower hides them (`image_ready`; the texts' cannot),
and no gradient is waited for at the end. Beside the weights all of it is small.
"""

_SHOWN = (
    "open_clip local_loss, gather_with_grad",
    "clipkit.clip_loss",
    "FastCLIP v0, v1, v3, published code",
    "FastCLIPLoss v3",
    "FastCLIPLoss v3, bf16 payload",
    "FastCLIPLoss v3, sharded",
    "FastCLIP v2, published code",
    "FastCLIPLoss v2",
    "FastCLIPLoss v2, sharded",
)


def document(result: Mapping[str, Any], path: Path) -> str:
    """The whole text."""
    stamp, name = result["environment"], path.resolve()
    shown = name.relative_to(ROOT).as_posix() if name.is_relative_to(ROOT) else path.name
    top = _TOP.format(
        command=result["command"],
        result=shown,
        torch=stamp["torch"],
        open_clip=result["open_clip"] or "not installed",
        commit=commit_name(stamp["commit"]),
    )
    parts = [top, _MEASURED.format(b=result["b"], d=result["d"])]
    rows = result["rows"]
    for ranks in dict.fromkeys(row["K"] for row in rows):
        parts.append(f"\nK = {ranks}:\n\n{_measured([row for row in rows if row['K'] == ranks])}")
    parts += [_SENT, _messages([row for row in rows if row["K"] == rows[0]["K"]]), _SETTINGS]
    parts += [_setting(case) for case in result["settings"]]
    return "".join(parts)


def _measured(rows: list[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        found, gradient = row["measured"], row.get("gradient")
        exact = f"{gradient['cosine']:.4f}, {gradient['norm']:.3f}" if gradient else ""
        same = "yes" if found == row["formula"] else "no"
        lines.append([row["method"], *(str(value) for value in found.values()), same, exact])
    return table(["method", "features", "samples", "backward", "agreement", "as the formula", "gradient"], lines)


def _messages(rows: list[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        cells = []
        for phase in ("forward", "backward"):
            sent = Counter(_kind(one) for one in row["messages"] if one["phase"] == phase)
            cells.append(", ".join(f"{count} x {kind}" for kind, count in sent.items()) or "none")
        lines.append([row["method"], *cells])
    return table(["method", "forward", "backward"], lines)


def _kind(message: Mapping[str, Any]) -> str:
    """all_gather_single is torch 2.13's name for all_gather_into_tensor: one kind."""
    operation = message["operation"].removesuffix("_into_tensor").removesuffix("_single").removesuffix("_tensor")
    return f"{operation} ({message['carries']})"


def _setting(case: Mapping[str, Any]) -> str:
    weights = case["weights"]
    head = (
        f"\n{case['setting']}: {case['model']}, d = {case['d']}, K = {case['K']}, b = {case['b']} "
        f"(N = {case['K'] * case['b']}); weights {weights / 1024:,.0f} KiB\n\n"
    )
    lines = []
    for name in _SHOWN:
        volume = case["volumes"][name]
        total = sum(volume.values())
        cells = [f"{volume[part] / 1024:,.1f}" for part in ("features", "samples", "backward")]
        lines.append([name, *cells, f"{total / 1024:,.1f}", f"{100 * total / (total + weights):.2f} %"])
    return head + table(["method", "features", "samples", "backward", "in all", "of all that a step sends"], lines)
