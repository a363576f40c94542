# SPDX-License-Identifier: Apache-2.0
"""Compiled blocks and recomputed activations: a run that is killed goes on with the same bits, in a new process."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import torch

from clipkit.train import load_config, train
from tests.train import tiny
from tests.train.test_interruptions import interrupt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile on a CPU needs a C++ compiler"),
]

STEPS, EVERY = 6, 2


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    settings = tiny.settings(tiny.build_set(folder, uneven=True), folder / "whole")
    settings["model"].update(grad_checkpointing=True)
    settings["model"]["overrides"]["vision.patch_dropout"] = 0.5
    settings["train"].update(compile=True, steps=STEPS, save_every=EVERY, keep_last=9)
    return tiny.write_config(folder / "config.yaml", settings)


def run(config, out):
    done = tiny.clipkit_train(config, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return done


def test_a_killed_run_goes_on_bitwise_and_its_names_are_those_of_a_plain_one(config, monkeypatch):
    whole, killed, plain = (config.parent / name for name in ("whole", "killed", "plain"))
    run(config, whole)
    code, output = interrupt(config, killed, signal.SIGKILL, EVERY + 1)
    assert code == -signal.SIGKILL, output
    assert "resumed from" in run(config, killed).stderr
    assert tiny.losses(killed) == tiny.losses(whole)
    ours, theirs = (tiny.checkpoint_tensors(out, STEPS) for out in (killed, whole))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name

    monkeypatch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
    train(load_config(config, ["train.compile=false", "model.grad_checkpointing=false", f"output.dir={plain}"]))
    assert tiny.checkpoint_tensors(plain, STEPS).keys() == theirs.keys()
    assert tiny.losses(plain) == pytest.approx(tiny.losses(whole), rel=1e-4)
    assert tiny.losses(plain) != tiny.losses(whole), "compiled code rounds otherwise; was anything compiled?"
    state = json.loads((killed / "checkpoints" / f"step-{STEPS:08d}" / "state.json").read_text())
    assert state["config"]["train"]["compile"]
