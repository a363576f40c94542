# SPDX-License-Identifier: Apache-2.0
"""FastCLIP in the trainer: its estimates belong to the run as the weights do, however the run is split or cut off."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from clipkit.data import Batch
from clipkit.losses import FastCLIPLoss
from clipkit.recipes import create_recipe
from clipkit.train import Ending, parse_config, train
from clipkit.train.build import build_step
from clipkit.train.runtime import Runtime
from tests.train import tiny
from tests.train.test_gradcache import make_batch

STEPS, SAMPLES = 9, 48  # four steps an epoch: the first visits, the second ones, and the start of the third
OPTIONS = {
    "v3": {"version": "v3", "gamma": 0.4, "decay_epochs": 2, "rho": 1.5, "eps": 1e-8},
    "v2": {"version": "v2", "gamma": 0.4, "decay_epochs": 2, "rho": 1.5, "eps": 1e-8, "temperature": 0.07},
}


def tree(data: Path, out: Path, version: str = "v3", options: dict[str, object] | None = None, **changes: object):
    settings = tiny.settings(data, out)
    settings["train"].update(precision="fp64", steps=STEPS, **changes)
    settings["recipe"] = {"name": "fastclip", "options": {**OPTIONS[version], **(options or {})}}
    return settings


def run_alone(settings, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
        return train(parse_config(settings), command=["clipkit", "train"], **options)


def assert_equal_runs(run: Path, reference: Path, *, bitwise: bool = False) -> None:
    """Losses, weights, optimizer state and table; the table rounds to fp32, which may fall to the other side."""
    ours, theirs = tiny.losses(run), tiny.losses(reference)
    assert max(ours) == max(theirs) == STEPS
    for step, loss in ours.items():
        assert loss == (theirs[step] if bitwise else pytest.approx(theirs[step], rel=1e-6)), step
    ours, theirs = tiny.checkpoint_tensors(run, STEPS), tiny.checkpoint_tensors(reference, STEPS)
    assert ours.keys() == theirs.keys()
    assert "recipe.rows" in ours
    for name, value in ours.items():
        if bitwise:
            assert torch.equal(value, theirs[name]), name
        else:
            assert torch.allclose(value, theirs[name], rtol=1e-4, atol=1e-7), name


# One process


@pytest.fixture(scope="module", params=["v3", "v2"])
def straight(request, data, tmp_path_factory):
    """(version, an uninterrupted run with a checkpoint after every step)."""
    out = tmp_path_factory.mktemp("straight") / request.param
    assert run_alone(tree(data, out, request.param, save_every=1, keep_last=STEPS)) is Ending.FINISHED
    return request.param, out


def test_every_sample_has_its_estimates_after_an_epoch(straight):
    version, out = straight
    first, last = (tiny.checkpoint_tensors(out, step)["recipe.rows"] for step in (1, STEPS))
    assert first.shape == (SAMPLES, 2 if version == "v3" else 8)
    assert first[:, 0].isfinite().sum() == 12
    assert last.isfinite().all()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    gammas = [line["gamma"] for line in lines if line["kind"] == "train"]
    assert gammas == pytest.approx([1.0] * 4 + [0.7] * 4 + [0.4])
    if version == "v2":
        assert (last[:, 2:4] != 0.07).all()
        assert all(0.01 <= line["tau"] <= 1 for line in lines if line["kind"] == "train")


def test_a_restart_at_any_step_is_bitwise_the_straight_run(straight, data, tmp_path):
    version, out = straight
    for step in range(1, STEPS):
        resumed = tmp_path / str(step)
        checkpoint = out / "checkpoints" / f"step-{step:08d}"
        assert run_alone(tree(data, resumed, version), resume=str(checkpoint)) is Ending.FINISHED
        assert list(tiny.losses(resumed)) == list(range(step + 1, STEPS + 1))
        assert_equal_runs(resumed, out, bitwise=True)


def test_a_checkpoint_of_other_data_is_refused_with_the_reason(straight, tmp_path):
    version, out = straight
    other = tiny.build_broken_set(tmp_path / "other")
    with pytest.raises(ValueError, match=r"data.train: got .* 48 samples, fingerprint .*; want the set the checkpoint"):
        run_alone(tree(other, tmp_path / "run", version), resume=str(out))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_version_is_refused_with_the_reason(straight, data, tmp_path):
    version, out = straight
    other = {"v3": "v1", "v2": "isogclr"}[version]  # the same columns, another objective or schedule
    with pytest.raises(ValueError, match=rf"recipe.options.version: got '{other}', while .* made with '{version}'"):
        run_alone(tree(data, tmp_path / "run", version, {"version": other}), resume=str(out))


def make_step(tmp_path, version, *, accumulation=1, precision="fp64"):
    settings = tree(tmp_path, tmp_path / "run", version, accumulation=accumulation)
    settings["train"]["precision"] = precision
    settings["model"]["overrides"] = {**tiny.MODEL, "vision.patch_dropout": 0.0}
    config = parse_config(settings)
    torch.manual_seed(0)
    recipe = create_recipe(config)
    recipe.prepare(samples=SAMPLES, fingerprint="an index", steps_per_epoch=2)
    return build_step(config, Runtime(), recipe, recipe.build(), total_steps=8)


def of_samples(batch: Batch, start: int) -> Batch:
    batch.ids.add_(start)
    return batch


def table_of(step) -> torch.Tensor:
    return step.recipe.loss.table().tensors()["rows"].clone()


@pytest.mark.parametrize("version", ["v3", "v2"])
def test_micro_batches_make_the_same_estimates_losses_and_weights(tmp_path, version):
    whole, parted = (make_step(tmp_path, version, accumulation=parts) for parts in (1, 5))
    for number in range(4):  # two epochs: what the first stored is read in the second
        results = [step(of_samples(make_batch(12), 12 * (number % 2)), number) for step in (whole, parted)]
        torch.testing.assert_close(results[1].loss, results[0].loss, rtol=1e-6, atol=0)
        visited = table_of(whole)[:, 0].isfinite()
        assert visited.sum() == min(12 * (number + 1), 24)
        torch.testing.assert_close(table_of(parted), table_of(whole), rtol=1e-5, atol=1e-6)
    for name, weight in whole.module.named_parameters():
        torch.testing.assert_close(parted.module.get_parameter(name), weight, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("version", ["v3", "v2"])
def test_a_step_that_overflows_changes_neither_weights_nor_estimates(tmp_path, version):
    """fp16's loss scale starts too high and is halved until it fits."""
    step = make_step(tmp_path, version, precision="fp16")
    scaler = step.precision.scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**30})
    skipped = 0
    for _ in range(30):
        weights, table = [weight.clone() for weight in step.module.parameters()], table_of(step)
        result = step(make_batch(12, torch.float32), 2)
        moved = not all(map(torch.equal, weights, step.module.parameters()))
        stored = not torch.equal(table, table_of(step))
        assert moved == stored == (not result.skipped)
        skipped += result.skipped
        if not result.skipped:
            break
    assert skipped > 0, "an overflow must be among the steps"
    assert moved


# Two processes


def kill_at(moment: str, step: int) -> None:
    """Make this process die in the given step: before its estimates are stored, after the weights moved; or right after
    they were stored, before the next weights.
    """
    commit, done = FastCLIPLoss.commit, [0]

    def and_die(self: FastCLIPLoss, skip: torch.Tensor | None = None) -> None:
        done[0] += 1
        if done[0] == step and moment == "before commit":
            os.kill(os.getpid(), signal.SIGKILL)
        commit(self, skip)
        if done[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    FastCLIPLoss.commit = and_die  # type: ignore[method-assign]


def _doomed(rank: int, moment: str, settings: dict[str, object], store: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    kill_at(moment, 6)
    dist.init_process_group("gloo", init_method=f"file://{store}/{moment.replace(' ', '-')}", rank=rank, world_size=2)
    train(parse_config(settings))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Everything that needs two processes. Runs of one process first, then those that die, then all others in one
    group, which also go on with what died and with what one process began.
    """
    base = tmp_path_factory.mktemp("runs")
    in_blocks = {"placement": "sharded"}
    whole = {"placement": "replicated"}
    jobs = {
        "v3-ddp": tree(data, base / "v3-ddp", "v3", whole),
        "v3-fsdp2": tree(data, base / "v3-fsdp2", "v3", in_blocks, parallel="fsdp2"),
        "v2-fsdp2": tree(data, base / "v2-fsdp2", "v2", whole, parallel="fsdp2", accumulation=2),
        "v2-ddp": tree(data, base / "v2-ddp", "v2", in_blocks, save_every=2),
    }
    for version in ("v3", "v2"):
        run_alone(tree(data, base / f"{version}-one", version, save_every=4, keep_last=9))
    jobs["v2-one-then-two"] = tree(data, base / "v2-one-then-two", "v2", in_blocks)
    killed = {}
    for moment in ("before commit", "after commit"):
        name = f"v2-killed-{moment.replace(' ', '-')}"
        killed[name] = tree(data, base / name, "v2", in_blocks, save_every=2)
        with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
            torch.multiprocessing.spawn(_doomed, (moment, killed[name], str(base)), nprocs=2)
    store = base / "store"
    store.mkdir()
    checkpoints = base / "v2-one-then-two" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (base / "v2-one" / "checkpoints" / "step-00000004").rename(checkpoints / "step-00000004")
    tiny.run_on_ranks(2, [{"tree": settings} for settings in {**jobs, **killed}.values()], store)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v3-ddp", "v3-fsdp2", "v2-fsdp2", "v2-ddp"])
def test_two_ranks_train_what_one_does(runs, name):
    assert_equal_runs(runs / name, runs / f"{name[:2]}-one")


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_blocks_on_two(runs):
    assert min(tiny.losses(runs / "v2-one-then-two")) == 5
    assert_equal_runs(runs / "v2-one-then-two", runs / "v2-one")


@pytest.mark.slow
def test_a_run_in_blocks_on_two_ranks_goes_on_in_one_process(runs, data, tmp_path):
    checkpoint = runs / "v2-ddp" / "checkpoints" / "step-00000008"
    assert run_alone(tree(data, tmp_path / "run", "v2"), resume=str(checkpoint)) is Ending.FINISHED
    assert list(tiny.losses(tmp_path / "run")) == [9]
    assert_equal_runs(tmp_path / "run", runs / "v2-one")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before-commit", "after-commit"])
def test_what_is_killed_between_weights_and_estimates_loses_neither(runs, moment):
    """Ended by SIGKILL in step 6, gone on from the checkpoint of step 4, bitwise as if nothing had happened."""
    out = runs / f"v2-killed-{moment}"
    assert sorted(tiny.losses(out)) == list(range(1, STEPS + 1))
    assert_equal_runs(out, runs / "v2-ddp", bitwise=True)
