# SPDX-License-Identifier: Apache-2.0
"""Targets are met, missed by a stated part, or not measured for a stated reason."""

from __future__ import annotations

import json

import pytest

from bench import record
from bench.figure import draw, drawable, figure_path
from bench.targets import TARGETS, judge


def row(variant, seconds, *, rows=8192, width=512, dtype="float32", mib=100.0, share=0.9, reason=None):
    return {
        "loss": "clip",
        "N": rows,
        "d": width,
        "dtype": dtype,
        "direction": "fwd+bwd",
        "variant": variant,
        "seconds": None if seconds is None else {"median": seconds, "min": seconds, "max": seconds, "runs": 3},
        "extra_mib": mib,
        "floor_units": 4,
        "floor_share": share,
        "reason": reason,
    }


def by_sentence(rows, device):
    return {entry["target"]: entry for entry in judge(rows, device)}


def test_a_cpu_run_is_judged_and_a_card_is_missing():
    found = by_sentence([row("clipkit", 1.0, share=0.5), row("open_clip", 2.5, mib=800.0)], "cpu")
    faster = found["N = 8,192, d = 512, float32: at least 2 times faster than open_clip"]
    assert (faster["status"], faster["measured"], faster["missed_by"]) == ("met", 2.5, None)
    floor = found["N = 8,192, d = 512, float32: at most 1.25 times the four units"]
    assert (floor["status"], floor["measured"], floor["missed_by"]) == ("missed", 2.0, 0.6)
    memory = found["N = 8,192, d = 512, float32: at most 0.1 of open_clip's extra memory"]
    assert (memory["status"], memory["measured"], memory["missed_by"]) == ("missed", 0.125, 0.25)
    half = found["N = 8,192, d = 512, bfloat16: at least 3 times faster than open_clip"]
    assert half["status"] == "not measured: the run has no row of clipkit there"
    card = found["N = 65,536, d = 768, bfloat16: at most 50 ms with Triton"]
    assert card["status"] == "not measured: no GPU was at hand"


def test_a_card_is_judged_on_its_rows():
    half = {"dtype": "bfloat16"}
    large = {"rows": 65536, "width": 768, **half}
    rows = [
        row("clipkit:triton", 0.040, **large, mib=2 * 96 + 256.0),
        row("clipkit:cuda", None, **large, reason="RuntimeError: no such kernel"),
        row("clipkit:triton", 0.010, rows=32768, **half, mib=2 * 32 + 600.0, share=0.8),
        row("torch.compile", 0.025, rows=32768, **half),
        row("inf-cl", None, rows=32768, **half, reason="not installed: pip install inf-cl"),
        row("clipkit:triton", 9.0, rows=1048576, **half, mib=2 * 1024 + 300.0),
    ]
    found = by_sentence(rows, "cuda")
    assert found["N = 65,536, d = 768, bfloat16: at most 50 ms with Triton"]["measured"] == 40.0
    cuda = found["N = 65,536, d = 768, bfloat16: at most 43 ms with CUDA"]
    assert cuda["status"] == "not measured: clipkit:cuda: RuntimeError: no such kernel"
    compiled = found["N = 32,768, d = 512, bfloat16: at least 3 times faster than torch.compile"]
    assert (compiled["status"], compiled["measured"]) == ("missed", 2.5)
    assert compiled["missed_by"] == pytest.approx(1 / 6, abs=1e-4)
    inf_cl = found["N = 32,768, d = 512, bfloat16: at least 5 times faster than inf-cl"]
    assert inf_cl["status"] == "not measured: inf-cl: not installed: pip install inf-cl"
    memory = found["every case: at most 512 MiB besides the gradients, at any N"]
    assert (memory["status"], memory["measured"]) == ("missed", 600.0)
    million = found["N = 1,048,576, d = 512, bfloat16: completes (ms, N of a million on one card)"]
    assert (million["status"], million["bound"]) == ("met", None)


def test_every_target_is_judged_on_an_empty_run():
    for device in ("cpu", "cuda"):
        assert len(judge([], device)) == len(TARGETS)
        assert all(entry["status"].startswith("not measured: ") for entry in judge([], device))


def test_the_figure_needs_three_sizes_and_names_every_peer(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row(name, 1e-6 * size, rows=size) for size in (512, 1024, 2048) for name in ("floor", "clipkit", "torch")]
    stamp = {"device": "cpu-2core", "torch": "2.13", "commit": "0123456789", "date": "2026-01-01"}
    result = {"environment": stamp, "rows": [*rows, row("torch", 1.0, rows=4096, dtype="bfloat16")]}
    path = figure_path(result, tmp_path)
    assert path.name == "loss_scaling.svg"
    assert draw(result, path)
    first = path.read_text(encoding="utf-8")
    for words in ("clipkit", "torch", "floor: 4 matrix products", "global batch N", "extra memory"):
        assert f"<!-- {words}" in first
    assert draw(result, path)
    assert path.read_text(encoding="utf-8") == first  # the same run draws the same file
    assert drawable(rows[:6]) == []
    assert not draw({"environment": stamp, "rows": rows[:6]}, tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
    assert figure_path({"environment": {"device": "nvidia-h100"}}, tmp_path).name == "loss_scaling_nvidia-h100.svg"


def test_result_files_are_json_with_a_line_for_each_row(tmp_path):
    rows = [row("clipkit", 1.0), row("torch", 2.0)]
    path = record.write("", "python -m bench", {"targets": [], "rows": rows}, device="cpu", folder=tmp_path)
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["rows"] == rows
    assert path.parent.name == result["environment"]["device"]
    assert sum('"variant"' in line for line in path.read_text(encoding="utf-8").splitlines()) == 2
    empty = record.write("none", "python -m bench", {"rows": []}, device="cpu", folder=tmp_path)
    assert json.loads(empty.read_text(encoding="utf-8"))["rows"] == []
