# SPDX-License-Identifier: Apache-2.0
"""bench.evaclip exchanges one part at a time, and its page's tables are what the result files say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.evaclip_methods import PRETRAINING, RECIPE, TRIES_EACH, VARIANTS
from bench.evaclip_text import DOCUMENT, ROOT, filled, tables
from bench.padded_text import encode_padded_text
from clipkit.encoders import create_model
from clipkit.train.config import load_config
from clipkit.train.state import flat_settings
from clipkit.train.typed import to_plain
from tests.encoders.naive import padded_tokens

ITS_PART = {
    "recipe": set(),
    "scratch": {"model.init.image"},
    "adamw": {"optim.name"},
    "patches": {"model.overrides"},
}
CHOSEN_FOR_ITSELF = {"optim.lr"}


def settings(words: list[str]) -> dict[str, Any]:
    plain = to_plain(load_config(RECIPE, words))
    overrides = plain["model"].pop("overrides")
    return {**flat_settings(plain), "model.overrides": overrides}


def test_a_variant_differs_in_its_part_and_in_what_was_chosen_for_it() -> None:
    base = settings([])
    assert set(VARIANTS) == set(ITS_PART)
    for name, variant in VARIANTS.items():
        assert variant.chosen in variant.tries
        for one in variant.tries:
            found = settings(variant.words(one))
            differing = {key for key in base if found[key] != base[key]}
            assert differing - CHOSEN_FOR_ITSELF <= ITS_PART[name], (name, one)
        assert ITS_PART[name] <= {key for key, value in settings(variant.words()).items() if value != base[key]}, name


def test_the_recipe_ships_with_what_was_chosen_and_starts_from_the_pretrainings_tower() -> None:
    shipped, chosen = load_config(RECIPE), load_config(RECIPE, VARIANTS["recipe"].words())
    assert shipped == chosen
    pretraining = load_config(PRETRAINING)
    assert shipped.model.init.image == pretraining.output.dir
    dropped = {"vision.patch_dropout"}
    assert {k: v for k, v in shipped.model.overrides.items() if k not in dropped} == dict(pretraining.model.overrides)
    assert shipped.model.name == pretraining.model.name


def test_what_was_chosen_scored_best_of_what_was_tried() -> None:
    path = max((ROOT / "bench" / "results" / "cpu-2core").glob("evaclip-tries-*.json"))
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for name, variant in VARIANTS.items():
        scores = {row["try"]: row["score"] for row in rows if row["variant"] == name}
        if len(variant.tries) == TRIES_EACH:
            assert set(scores) == set(variant.tries), name
            assert variant.chosen == max(scores, key=lambda one: scores[one]), name


def test_a_part_without_its_place_is_an_error() -> None:
    page = "a\n<!-- x: bench.evaclip -->\nold\n<!-- end of x -->\nb\n"
    assert filled(page, {"x": "new\n"}) == "a\n<!-- x: bench.evaclip -->\nnew\n<!-- end of x -->\nb\n"
    with pytest.raises(ValueError, match="the marks of 'y' are there 0 times"):
        filled(page, {"y": ""})


@pytest.mark.skipif("../bench/results" not in DOCUMENT.read_text(encoding="utf-8"), reason="no results on the page yet")
def test_the_page_holds_its_result_files_tables() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    result, tries = (Path(ROOT / name) for name in re.findall(r"\]\(\.\./(\S+\.json)\)", text))
    assert filled(text, tables(result, tries)) == text


def test_padded_text_has_the_packed_towers_features() -> None:
    torch.manual_seed(0)
    model = create_model("vit-tiny-32px", **{"text.vocab_size": 600, "text.context_length": 24}).double()
    tokens = padded_tokens([4, 24, 9, 4], 24)
    for normalize in (False, True):
        packed, padded = model.encode_text(tokens, normalize), encode_padded_text(model, tokens, normalize)
        torch.testing.assert_close(padded, packed, rtol=1e-10, atol=1e-12)
