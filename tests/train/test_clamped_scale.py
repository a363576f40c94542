# SPDX-License-Identifier: Apache-2.0
"""The temperature's bounds in the trainer: they hold in the weights that steps go on from, sharded and in 16 bits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from clipkit.train import parse_config
from clipkit.train import train as train_run
from tests.train import tiny

HIGH = math.log(100.0)
RATE = 0.01


def tree(data: Path, out: Path, steps: int, **train: object) -> dict[str, object]:
    """A scale that starts beyond its bound, and is wanted smaller by features that know nothing yet."""
    settings = tiny.settings(data, out)
    settings["model"]["overrides"]["init_logit_scale"] = 4.75
    settings["train"].update(train, steps=steps)
    settings["optim"] = {"name": "lamb", "lr": 1e-4, "lr_scale": RATE, "schedule": {"name": "constant"}}
    return settings


def check(run: Path) -> None:
    first, second = (tiny.checkpoint_tensors(run, steps) for steps in (1, 2))
    assert not [name for name in second if name.endswith(".master")], "the parameters are the masters"
    scale = first["model.logit_scale"]
    assert scale.dtype == torch.float32
    assert scale.item() == torch.tensor(HIGH).item()
    moved = HIGH - second["model.logit_scale"].item()
    assert 0.5 * RATE < moved < 1.5 * RATE, "the second step starts from the bound"


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_one_process(precision, data, tmp_path):
    for steps in (1, 2):
        train_run(parse_config(tree(data, tmp_path, steps, precision=precision)))
    check(tmp_path)


@pytest.mark.slow
def test_on_shards_in_16_bits(data, tmp_path):
    job = {"precision": "bf16", "parallel": "fsdp2"}
    tiny.run_on_ranks(2, [{"tree": tree(data, tmp_path / "run", steps, **job)} for steps in (1, 2)], tmp_path)
    check(tmp_path / "run")
