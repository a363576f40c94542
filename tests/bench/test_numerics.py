# SPDX-License-Identifier: Apache-2.0
"""docs/numerics.md is what its result file says, and the figures are those of the losses."""

from __future__ import annotations

import json
import re

import pytest
import torch

from bench.numerics import ROUNDED, at_level, at_scale, data, in_a_cone, measure
from bench.numerics_text import DOCUMENT, ROOT, document
from tests.reference import naive
from tests.reference.cases import BY_NAME, CASES


def committed():
    text = DOCUMENT.read_text(encoding="utf-8")
    path = ROOT / re.search(r"\]\(\.\./(\S+\.json)\)", text).group(1)
    return text, path, json.loads(path.read_text(encoding="utf-8"))


def test_the_document_is_its_result_files():
    text, path, result = committed()
    assert document(result, path) == text


def test_the_result_holds_every_family_dtype_and_data_set():
    _, _, result = committed()
    found = {(row["family"], row["data"], row["dtype"]) for row in result["rows"]}
    labels = [label for _, label, _ in data()]
    expected = {
        (case.name, label, dtype) for case in CASES for label in labels for dtype in ("float32", "bfloat16", "float16")
    }
    assert found == expected


def test_ours_is_as_exact_as_the_dtype_or_as_plain_torch():
    _, _, result = committed()
    checked = 0
    for row in result["rows"]:
        rounding, peer = row["errors"][ROUNDED]["gradient"], row["errors"]["torch"]["gradient"] or 1.0
        few_roundings = 5e-5 if row["family"].startswith("gd") else 2e-5
        for way, errors in row["errors"].items():
            if way.startswith("clipkit"):
                where = (row["family"], row["data"], row["dtype"], way, errors)
                assert errors["loss"] is not None, where
                assert errors["loss"] <= 5e-6, where
                assert errors["gradient"] <= max(few_roundings, 3 * rounding, peer), where
                checked += 1
    assert checked > 700


@pytest.mark.parametrize("loss", [18.0, 1e-3, 1e-6])
def test_data_has_the_loss_that_it_is_named_for(loss):
    image, text, scale = at_level(loss)
    assert float(naive.clip(image, text, scale)) == pytest.approx(loss, rel=1e-3)


def test_errors_are_measured_against_float64():
    sets = [("scale", "100", at_scale(100.0)), ("shape", "cone", in_a_cone(outliers=True))]
    rows = measure(torch.device("cpu"), sets, [BY_NAME["clip"]])
    assert [(row["data"], row["dtype"]) for row in rows[:3]] == [
        ("100", "float32"),
        ("100", "bfloat16"),
        ("100", "float16"),
    ]
    for row in rows:
        assert {"clipkit:torch", "torch", ROUNDED} <= set(row["errors"])
        assert row["errors"]["clipkit:torch"]["loss"] < 1e-6
    assert rows[1]["errors"]["torch"]["gradient"] > 3 * rows[1]["errors"]["clipkit:torch"]["gradient"]
