# SPDX-License-Identifier: Apache-2.0
"""docs/sharding.md's table is its result file's, and what is counted there is what the ways promise."""

from __future__ import annotations

import json
import re

import pytest
import torch.distributed as dist

from bench.numerics_text import ROOT
from bench.sharding import DOCUMENT, WAYS, Way, count, results_table
from tests.parallel.ranks import run_on_ranks
from tests.train import tiny

SLACK = 0.02  # what is no multiple of the ranks, step counts, the scale; and the loss's own messages


# Without an embedding that is most of a rank's quarter.
SMALL = {**tiny.MODEL, "text.vocab_size": 64}


def committed():
    text = DOCUMENT.read_text(encoding="utf-8")
    name = re.search(r"\]\(\.\./(\S+\.json)\)", text).group(1)
    return text, name, json.loads((ROOT / name).read_text(encoding="utf-8"))


def test_the_table_is_its_result_files():
    text, name, result = committed()
    assert results_table(result, name) in text
    assert [Way(row["parallel"], row["ranks"], row["shards"]) for row in result["rows"]] == WAYS


def test_every_way_holds_and_sends_what_the_page_says():
    _, _, result = committed()
    for row in result["rows"]:
        assert_as_promised(row, result["rows"][0]["parameters"])


def assert_as_promised(row, whole, slack=SLACK):
    """`whole` is P, the bytes of all weights."""
    ranks, cut = row["ranks"], row["shards"] or row["ranks"]
    held = 1 if row["parallel"] in ("ddp", "zero1") else cut
    state = 1 if row["parallel"] == "ddp" else cut
    assert row["parameters"] == row["gradients"] == pytest.approx(whole / held, rel=slack)
    assert row["state"] == pytest.approx(2 * whole / state, rel=slack)
    sent = row["sent"]
    all_reduced = 2 * whole * (ranks - 1) / ranks
    if row["parallel"] in ("ddp", "zero1"):
        assert sent["all_reduce"] == pytest.approx(all_reduced, rel=slack)
        assert sent.get("broadcast", 0) == (whole if row["parallel"] == "zero1" else 0)
        return
    part = whole * (cut - 1) / cut
    gathered, scattered = (
        sum(sent.get(f"{name}{end}", 0) for end in ("_single", "_tensor", "_into_tensor"))
        for name in ("all_gather", "reduce_scatter")
    )
    assert part < gathered < 2 * part, "blocks twice, the rest once"
    assert scattered == pytest.approx(part, rel=slack)
    copies = ranks // cut
    assert sent["all_reduce"] == pytest.approx(2 * (copies - 1) / copies * whole / cut, rel=slack, abs=1000)


def counted(rank):
    rows = [{**way._asdict(), **count(way, "vit-tiny-32px", SMALL)} for way in WAYS if way.ranks == 4]
    answers = [None] * dist.get_world_size()
    dist.all_gather_object(answers, rows)
    for several in zip(*answers, strict=True):
        most = {key: max(row[key] for row in several) for key in ("parameters", "gradients", "state")}
        assert_as_promised({**several[0], **most}, rows[0]["parameters"], slack=0.1)


def test_it_counts():
    run_on_ranks(4, counted)
