# SPDX-License-Identifier: Apache-2.0
"""The command in processes of its own, cut off at random moments, and started again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time

import pytest

from clipkit.train import load_run
from tests.train import tiny

pytestmark = pytest.mark.slow

STEPS = 100


@pytest.fixture(scope="module")
def config(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    settings = tiny.settings(data, folder / "whole", train__steps=STEPS)
    settings["train"] = {"global_batch": 12, "steps": STEPS, "log_every": 1, "save_every": 10, "keep_last": 2}
    settings["model"]["overrides"]["vision.patch_dropout"] = 0.5
    settings["eval"] = {
        "retrieval": [{"name": "own", "data": str(data), "captions": str(data.parent / "captions.txt")}]
    }
    return tiny.write_config(folder / "config.yaml", settings)


@pytest.fixture(scope="module")
def whole(config):
    done = tiny.clipkit_train(config)
    assert done.returncode == 0, done.stderr
    return config.parent / "whole", done


def interrupt(config, out, number, after_steps, *settings, everybody=False):
    """Start the command, send it (or all its processes) a signal once it has logged that many steps.

    Returns the exit code and the output.
    """
    process = subprocess.Popen(
        tiny.command(config, "--out", str(out), *settings),
        start_new_session=True,
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count('"train"') >= after_steps:
            (os.killpg if everybody else os.kill)(process.pid, number)
            break
        time.sleep(0.002)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output.decode()


def test_a_run_on_real_files_ends_with_model_numbers_and_report(whole):
    out, done = whole
    assert f"step {STEPS}/{STEPS}" in done.stderr, "plain progress lines where there is no terminal"
    assert "\x1b" not in done.stderr
    assert done.stdout == ""
    final = json.loads((out / "eval.json").read_text())
    assert final["step"] == STEPS
    assert 0 <= final["own/image_to_text/R@1"] <= 1
    assert (out / "report.html").stat().st_size > 1000
    model, config, tokenizer = load_run(out)
    assert model.encode_text(tokenizer(["a red box"]), normalize=True).shape == (1, 16)
    assert config.train.steps == STEPS


def test_sigterm_saves_exits_75_and_the_same_command_ends_bitwise_equal(config, whole):
    out = config.parent / "terminated"
    cut = random.SystemRandom().randrange(1, STEPS - 20)
    code, output = interrupt(config, out, signal.SIGTERM, cut)
    assert code == 75, output
    assert "the same command goes on" in output
    stopped_at = max(tiny.losses(out))
    assert (out / "checkpoints" / f"step-{stopped_at:08d}" / "complete.json").exists()
    done = tiny.clipkit_train(config, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert tiny.losses(out) == tiny.losses(whole[0])


def test_sigkill_loses_no_more_than_the_steps_since_the_last_save(config, whole):
    out = config.parent / "killed"
    cut = random.SystemRandom().randrange(11, STEPS - 20)
    code, output = interrupt(config, out, signal.SIGKILL, cut)
    assert code == -signal.SIGKILL, output
    reached = (out / "metrics.jsonl").read_text().count('"train"')
    done = tiny.clipkit_train(config, "--out", str(out))
    assert done.returncode == 0, done.stderr
    resumed_from = int(done.stderr.split("resumed from")[1].split("step-")[1][:8])
    assert resumed_from >= reached - 10 - 1, "a save every 10 steps; the last one may have been under way"
    assert tiny.losses(out) == tiny.losses(whole[0])


def test_a_signal_to_every_process_of_the_job_does_not_take_the_data_workers_away(config):
    """As scancel and many batch systems send it."""
    out = config.parent / "everybody"
    code, output = interrupt(config, out, signal.SIGTERM, 30, "--set", "data.workers=2", everybody=True)
    assert code == 75, output


def test_torchrun_ranks_stop_together_and_go_on(config, whole):
    out = config.parent / "ranks"
    done = tiny.clipkit_train(config, "--out", str(out), "--set", "train.steps=6", "train.parallel=fsdp2", ranks=2)
    assert done.returncode == 0, done.stderr
    found, wanted = tiny.losses(out), tiny.losses(whole[0])
    assert found[1] == pytest.approx(wanted[1], rel=0.05), "patch dropout differs per rank, the data and weights do not"
    assert done.stderr.count("checkpoint at step 6") == 1, "only rank 0 talks"
    assert json.loads((out / "eval.json").read_text())["step"] == 6
