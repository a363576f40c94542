# SPDX-License-Identifier: Apache-2.0
"""docs/fastclip-communication.md is what its result file says, and the formulas are what was counted."""

from __future__ import annotations

import json
import re

from bench.communication import METHODS, RANKS, Setting, settings
from bench.communication_text import DOCUMENT, document
from bench.numerics_text import ROOT

KIB = 1024


def committed():
    text = DOCUMENT.read_text(encoding="utf-8")
    path = ROOT / re.search(r"\]\(\.\./(\S+\.json)\)", text).group(1)
    return text, path, json.loads(path.read_text(encoding="utf-8"))


def test_the_document_is_its_result_files():
    text, path, result = committed()
    assert document(result, path) == text


def test_every_method_was_counted_and_is_as_its_formula():
    _, _, result = committed()
    assert {(row["method"], row["K"]) for row in result["rows"]} == {
        (name, ranks) for name, method in METHODS.items() if method.make for ranks in RANKS
    }
    for row in result["rows"]:
        expected = METHODS[row["method"]].expected(
            Setting(row["K"], result["b"], result["d"], payload=METHODS[row["method"]].payload)
        )
        assert row["measured"] == row["formula"] == expected._asdict(), (row["method"], row["K"])


def test_the_published_settings_follow_from_the_formulas():
    _, _, result = committed()
    assert settings() == result["settings"]


def test_known_figures():
    """Computed by hand: medium on 8 cards, RN50 with d = 1024, 128 rows each."""
    case = Setting(8, 128, 1024)
    towers = 7 * 128 * 1024 * 4 * 2
    assert METHODS["open_clip"].expected(case) == (towers, 0, 0, 0)
    assert METHODS["open_clip local_loss, gather_with_grad"].expected(case) == (towers, 0, towers, 0)
    assert towers == 7 * KIB * KIB
    assert METHODS["FastCLIP v0, v1, v3, published code"].expected(case).samples == 21 * KIB
    assert METHODS["FastCLIP v2, published code"].expected(case).samples == 56 * KIB
    assert METHODS["FastCLIPLoss v3"].expected(case).samples == 7 * 128 * 28
    assert METHODS["FastCLIPLoss v2"].expected(case).samples == 7 * 128 * 40
