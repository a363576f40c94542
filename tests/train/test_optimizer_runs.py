# SPDX-License-Identifier: Apache-2.0
"""Optimizers in the trainer, and layer decay: they train, they resume with the same bits, and ranks and shards do not
show.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipkit.train import parse_config
from clipkit.train import train as train_run
from tests.train import tiny

STEPS = 5
LAYERS = {
    "lr_scale": 1e-3,
    "image": {"lr": 0.02, "layer_decay": 0.5},
    "text": {"weight_decay": 0.05, "layer_decay": 0.75},
    "no_decay": ["positional_embedding"],
}
OPTIMIZERS = {
    "lamb": {"name": "lamb", "lr": 0.02, "lr_scale": 1e-3},
    "lamb, every tensor": {"name": "lamb", "lr": 0.02, "lr_scale": 1e-3, "lamb": {"trust": "paper"}},
    "lamb, by layers": {"name": "lamb", "lr": 0.01, "lamb": {"trust": "deepspeed"}, **LAYERS},
    "adamw, by layers": {"name": "adamw", "lr": 1e-3, **LAYERS, "image": {"lr": 2e-3, "layer_decay": 0.5}},
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


def test_a_checkpoint_knows_no_groups(data, tmp_path):
    """State is kept by parameter: a run may go on with layer decay, and with what moments it had."""
    settings = {"precision": "fp64"}
    first = tree(data, tmp_path / "run", "adamw, by layers", **settings, steps=4)
    first["optim"].update(image={}, text={}, no_decay=[])
    train_run(parse_config(first))
    before = tiny.checkpoint_tensors(tmp_path / "run", 4)
    train_run(parse_config(tree(data, tmp_path / "run", "adamw, by layers", **settings, steps=5)))
    after = tiny.checkpoint_tensors(tmp_path / "run", 5)
    assert before.keys() == after.keys()
    assert all(value == 5 for key, value in after.items() if key.endswith(".step"))
    moved = {key: (after[key] - value).abs().max() for key, value in before.items() if key.startswith("model.visual.")}
    assert moved["model.visual.conv1.weight"] < moved["model.visual.proj"] / 2, (
        "two layers lower: a quarter of the rate"
    )


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
