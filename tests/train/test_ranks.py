# SPDX-License-Identifier: Apache-2.0
"""How a global batch is spread over processes and micro-batches does not show in the result."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch

from clipkit.data import GlobalOrder
from clipkit.train import Ending, parse_config, train
from clipkit.train.session import Session
from tests.train import tiny

pytestmark = pytest.mark.slow

STEPS = 6
TOLERANCE = 1e-9  # float64; sums in another order, through six AdamW steps


def tree(data, out, **changes):
    settings = tiny.settings(data, out)
    settings["train"].update(precision="fp64", steps=STEPS, **changes)
    return settings


def run_alone(settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
        return train(parse_config(settings), command=["clipkit", "train"])


def run_alone_until(step, settings):
    show = Session.show

    def and_stop(self, **facts):
        show(self, **facts)
        if self.position.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "show", and_stop)
        assert run_alone(settings) is Ending.PREEMPTED


def assert_equal_runs(run, reference, steps=STEPS):
    ours, theirs = tiny.losses(run), tiny.losses(reference)
    assert len(theirs) == steps
    for step, loss in ours.items():
        assert loss == pytest.approx(theirs[step], rel=TOLERANCE), step
    ours, theirs = tiny.checkpoint_tensors(run, steps), tiny.checkpoint_tensors(reference, steps)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=1e-6, atol=TOLERANCE), name


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Everything that needs several processes, in two process groups."""
    base = tmp_path_factory.mktemp("runs")
    broken = tiny.build_broken_set(base / "broken")
    settings = {
        "one": tree(data, base / "one"),
        "two": tree(data, base / "two"),
        "two-accumulated": tree(data, base / "two-accumulated", accumulation=3),
        "sharded": tree(data, base / "sharded", parallel="fsdp2", save_every=3),
        "sharded-accumulated": tree(data, base / "sharded-accumulated", parallel="fsdp2", accumulation=2),
        "broken-one": tree(broken, base / "broken-one", global_batch=4, seed=7),
        "broken-two": tree(broken, base / "broken-two", global_batch=4, seed=7),
        "stopped": tree(data, base / "stopped", async_save=True, save_every=2),
        "sharded-16-bit": {**tree(data, base / "sharded-16-bit", parallel="fsdp2")},
        "sharded-fp16": {**tree(data, base / "sharded-fp16", parallel="fsdp2")},
        "one-then-two": tree(data, base / "one-then-two", save_every=2),
        "four": tree(data, base / "four", accumulation=2),
        "five-rows": tree(data, base / "five-rows", global_batch=5),
        "five-rows-one": tree(data, base / "five-rows-one", global_batch=5),
    }
    settings["sharded-16-bit"]["train"]["precision"] = "bf16"
    settings["sharded-fp16"]["train"].update(precision="fp16", steps=30)
    for name in ("one", "broken-one", "five-rows-one"):
        run_alone(settings[name])
    run_alone_until(2, settings["one-then-two"])
    stopped = {"tree": settings["stopped"], "stop": [1, 3]}
    in_two = ["two", "two-accumulated", "sharded", "sharded-accumulated", "sharded-16-bit", "sharded-fp16"]
    in_two += ["broken-two", "one-then-two"]
    for world_size, jobs in (
        (2, [*({"tree": settings[name]} for name in in_two), stopped]),
        (4, [{"tree": settings["four"]}, {"tree": settings["five-rows"]}]),
    ):
        store = base / f"world-{world_size}"
        store.mkdir()
        tiny.run_on_ranks(world_size, jobs, store)
    return base


@pytest.mark.parametrize("name", ["two", "two-accumulated", "sharded", "sharded-accumulated", "four"])
def test_losses_weights_and_gradients_equal_those_of_one_process(runs, name):
    assert_equal_runs(runs / name, runs / "one")


def test_accumulation_alone_changes_nothing(runs, data, tmp_path):
    run_alone(tree(data, tmp_path / "run", accumulation=4))
    assert_equal_runs(tmp_path / "run", runs / "one")


def test_unequal_rows_per_rank_change_nothing(runs):
    assert_equal_runs(runs / "five-rows", runs / "five-rows-one")


def test_broken_samples_make_local_batches_unequal_or_empty_and_change_nothing(runs):
    order = GlobalOrder(48, 4, seed=7)
    halves = [half for step in range(STEPS) for half in order.ids(0, step).reshape(2, 2)]
    assert any((half % 3 == 0).all() for half in halves), "a rank without any row must be among the cases"
    assert_equal_runs(runs / "broken-two", runs / "broken-one")
    last = json.loads((runs / "broken-two" / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["skipped_samples"] > 0


def test_a_signal_to_one_rank_stops_all_at_the_same_step(runs):
    for rank in (0, 1):
        assert json.loads((runs / "world-2" / f"endings-{rank}.json").read_text())[-1] == Ending.PREEMPTED.name
    assert len(tiny.losses(runs / "stopped")) == 3
    assert (runs / "stopped" / "checkpoints" / "step-00000003" / "complete.json").exists()


def test_a_run_of_two_ranks_goes_on_with_one(runs, data):
    """Stopped above at step 3 of two ranks; here one process finishes it."""
    assert run_alone(tree(data, runs / "stopped")) is Ending.FINISHED
    assert_equal_runs(runs / "stopped", runs / "one")


def test_a_sharded_checkpoint_goes_on_in_one_process(runs, data, tmp_path):
    settings = tree(data, tmp_path / "run")
    checkpoint = runs / "sharded" / "checkpoints" / "step-00000003"
    train(parse_config(settings), resume=str(checkpoint), command=["clipkit", "train"])
    found, wanted = tiny.losses(tmp_path / "run"), tiny.losses(runs / "one")
    assert list(found) == [4, 5, 6]
    assert all(loss == pytest.approx(wanted[step], rel=TOLERANCE) for step, loss in found.items())


def test_a_checkpoint_of_one_process_goes_on_with_two_ranks(runs):
    assert_equal_runs(runs / "one-then-two", runs / "one")


def test_sharded_16_bit_training_runs(runs):
    wanted = tiny.losses(runs / "one")
    for step, loss in tiny.losses(runs / "sharded-16-bit").items():
        assert loss == pytest.approx(wanted[step], rel=0.05), step
    losses = [loss for loss in tiny.losses(runs / "sharded-fp16").values() if loss is not None]
    assert losses[-1] < math.log(12)
