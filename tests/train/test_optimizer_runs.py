# SPDX-License-Identifier: Apache-2.0
"""LAMB, Lion and SGD in the trainer: they train, they resume with the same bits, and ranks and shards do not show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipkit.train import parse_config
from clipkit.train import train as train_run
from tests.train import tiny

STEPS = 5
OPTIMIZERS = {
    "lamb": {"name": "lamb", "lr": 0.02, "lr_scale": 1e-3},
    "lamb, every tensor": {"name": "lamb", "lr": 0.02, "lr_scale": 1e-3, "lamb": {"trust": "paper"}},
    "lion": {"name": "lion", "lr": 1e-3, "lr_scale": 1e-3},
    "sgd": {"name": "sgd", "lr": 0.1, "lr_scale": 1e-2},
    "nesterov": {"name": "sgd", "lr": 0.1, "lr_scale": 1e-2, "sgd": {"nesterov": True}},
}
NAMES = list(OPTIMIZERS)


def tree(data: Path, out: Path, name: str, **train: object) -> dict[str, object]:
    """With FastCLIP's rule for the temperature, acting from the start (0.07 is below the threshold)."""
    settings = tiny.settings(data, out)
    settings["train"].update(train)
    settings["optim"] = {
        **OPTIMIZERS[name],
        "weight_decay": 0.1,
        "schedule": {"name": "constant", "warmup_steps": 2},
        "scale_schedule": {"name": "step_thresh", "threshold": 0.072},
    }
    return settings


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_goes_on_bitwise_from_a_checkpoint(name, data, tmp_path):
    def run(out: str, steps: int) -> dict[str, torch.Tensor]:
        train_run(parse_config(tree(data, tmp_path / out, name, steps=steps)))
        return tiny.checkpoint_tensors(tmp_path / out, steps)

    whole = run("whole", 24)
    run("parts", 11)
    parts = run("parts", 24)
    assert any(key.startswith("optimizer.") for key in whole)
    for key, value in whole.items():
        assert torch.equal(value, parts[key]), key
    losses = list(tiny.losses(tmp_path / "whole").values())
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Each optimizer in one process, under DDP and under FSDP2, in float64."""
    base = tmp_path_factory.mktemp("runs")
    settings = {"steps": STEPS, "precision": "fp64"}
    jobs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
        for name in NAMES:
            train_run(parse_config(tree(data, base / name / "alone", name, **settings)))
            for parallel in ("ddp", "fsdp2"):
                jobs.append({"tree": tree(data, base / name / parallel, name, **settings, parallel=parallel)})
    tiny.run_on_ranks(2, jobs, base)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_and_shards_take_the_steps_of_one_process(name, parallel, runs):
    losses, wanted = (tiny.losses(runs / name / which) for which in (parallel, "alone"))
    assert losses == pytest.approx(wanted, rel=1e-9)
    tensors, wanted = (tiny.checkpoint_tensors(runs / name / which, STEPS) for which in (parallel, "alone"))
    assert tensors.keys() == wanted.keys()
    for key, value in tensors.items():
        ours, theirs = (_determined(key, tensor) for tensor in (value, wanted[key]))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9, msg=key)


def _determined(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Without the keys' biases: a softmax does not see them, their gradients are rounding, and Lion takes its sign."""
    if not key.endswith("in_proj_bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])
