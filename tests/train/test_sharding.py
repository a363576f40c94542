# SPDX-License-Identifier: Apache-2.0
"""What each rank holds does not show in what is trained, and a checkpoint of one way goes on in any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.train import parse_config, train
from clipkit.train.build import build_session
from clipkit.train.parallelize import wrap
from clipkit.train.runtime import Runtime
from tests.train import tiny

pytestmark = pytest.mark.slow

STEPS, HALF = 4, 2
TOLERANCE = 1e-9  # float64; sums in another order, through four steps
CLIP = 0.1
OPTIMIZERS = {"adamw": {}, "lamb": {"name": "lamb", "lr": 0.02, "lr_scale": 1e-3}}
# Ranks and who holds what; hsdp's copies x shards.
WAYS: dict[str, tuple[int, dict[str, object]]] = {
    "one": (1, {}),
    "ddp-2": (2, {"parallel": "ddp"}),
    "zero1-2": (2, {"parallel": "zero1"}),
    "fsdp2-2": (2, {"parallel": "fsdp2"}),
    "hsdp-2x1": (2, {"parallel": "hsdp", "shards": 1}),
    "ddp-4": (4, {"parallel": "ddp"}),
    "zero1-4": (4, {"parallel": "zero1"}),
    "fsdp2-4": (4, {"parallel": "fsdp2"}),
    "hsdp-2x2": (4, {"parallel": "hsdp", "shards": 2}),
}
SEVERAL = [way for way in WAYS if way != "one"]
ON_FOUR = [way for way, (ranks, _) in WAYS.items() if ranks == 4]
LOW = [("zero1-4", "bf16"), ("zero1-4", "fp16"), ("hsdp-2x2", "bf16"), ("hsdp-2x2", "fp16")]
# Each way is written and read, and each is read after a change of both mode and number of ranks.
MOVES = [
    *[("one", way) for way in ON_FOUR],
    *[(way, "one") for way in SEVERAL],
    ("ddp-4", "zero1-2"),
    ("zero1-4", "fsdp2-2"),
    ("fsdp2-4", "hsdp-2x1"),
    ("hsdp-2x2", "zero1-2"),
    ("zero1-2", "hsdp-2x2"),
    ("hsdp-2x1", "zero1-4"),
    ("fsdp2-2", "ddp-4"),
    ("zero1-4", "zero1-2"),
]


def tree(data: Path, out: Path, way: str, optimizer: str = "adamw", precision: str = "fp64") -> dict[str, Any]:
    """With everything that could tell ranks apart; the single process has whole batches and keeps its activations."""
    settings: dict[str, Any] = tiny.settings(data, out)
    settings["optim"].update(OPTIMIZERS[optimizer], grad_clip=CLIP)
    captions = str(data.parent / "captions.txt")
    settings["eval"] = {"retrieval": [{"name": "own", "data": str(data), "captions": captions}]}
    settings["train"].update(WAYS[way][1], precision=precision, steps=STEPS, save_every=HALF, keep_last=9)
    if way != "one":
        settings["train"].update(accumulation=2)
        settings["model"].update(grad_checkpointing=True)
    return settings


class Runs:
    """Runs by name, started together for each number of ranks."""

    def __init__(self, data: Path, base: Path) -> None:
        self.data, self.base = data, base
        self._jobs: dict[int, list[dict[str, Any]]] = {1: [], 2: [], 4: []}

    def add(self, name: str, way: str, *, after: str | None = None, **options: str) -> None:
        """A run of `way`, or the second half of the run `after` by it."""
        job = {"tree": tree(self.data, self.base / name, way, **options)}
        if after is not None:
            job["resume"] = str(self.base / after / "checkpoints" / f"step-{HALF:08d}")
        self._jobs[WAYS[way][0]].append(job)

    def start(self) -> None:
        for job in self._jobs.pop(1):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
                train(parse_config(job["tree"]), resume=job.get("resume", "auto"), command=["clipkit", "train"])
        for ranks, jobs in self._jobs.items():
            store = self.base / f"world-{ranks}-{len(list(self.base.iterdir()))}"
            store.mkdir()
            tiny.run_on_ranks(ranks, jobs, store)
        self._jobs = {1: [], 2: [], 4: []}

    def losses(self, name: str) -> dict[int, float]:
        return tiny.losses(self.base / name)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return tiny.checkpoint_tensors(self.base / name, STEPS)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    return tiny.build_set(tmp_path_factory.mktemp("uneven"), uneven=True)


@pytest.fixture(scope="module")
def runs(uneven, tmp_path_factory):
    found = Runs(uneven, tmp_path_factory.mktemp("runs"))
    for way in WAYS:
        for optimizer in OPTIMIZERS:
            found.add(f"{way} {optimizer}", way, optimizer=optimizer)
    for way in ("one", *ON_FOUR):
        found.add(f"{way} fp32", way, precision="fp32")
    for way, precision in LOW:
        found.add(f"{way} {precision}", way, precision=precision)
    found.start()
    for source, target in MOVES:
        found.add(f"{source} to {target}", target, after=f"{source} adamw")
    for way in ON_FOUR:
        found.add(f"{way} fp32 again", way, precision="fp32", after=f"{way} fp32")
    found.start()
    return found


def assert_equal_runs(runs: Runs, name: str, reference: str) -> None:
    ours, theirs = runs.losses(name), runs.losses(reference)
    assert ours[STEPS] == pytest.approx(theirs[STEPS], rel=TOLERANCE)
    assert ours == pytest.approx({step: theirs[step] for step in ours}, rel=TOLERANCE)
    ours, theirs = runs.tensors(name), runs.tensors(reference)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-6, atol=TOLERANCE, msg=key)


def test_ranks_have_unequal_numbers_of_tokens_and_gradients_are_clipped(runs, uneven):
    tokens = []
    for rank in range(2):
        config = parse_config(tree(uneven, runs.base / "unused", "one"))
        batches = build_session(config, Runtime(rank=rank, world_size=2), runs.base / "unused").batches()
        tokens.append([int((next(batches).tokens != 0).sum()) for _ in range(STEPS)])
    assert all(left != right for left, right in zip(*tokens, strict=True)), tokens
    for name in ("one adamw", "hsdp-2x2 lamb"):
        lines = (runs.base / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        norms = [line["grad_norm"] for line in map(json.loads, lines) if line["kind"] == "train"]
        assert min(norms) > CLIP


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("way", SEVERAL)
def test_every_way_takes_the_steps_of_one_process(runs, way, optimizer):
    assert_equal_runs(runs, f"{way} {optimizer}", f"one {optimizer}")
    found, wanted = (
        json.loads((runs.base / name / "eval.json").read_text()) for name in (f"{way} {optimizer}", f"one {optimizer}")
    )
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("way", ON_FOUR)
def test_in_single_precision_losses_agree_to_rounding(runs, way):
    assert runs.losses(f"{way} fp32") == pytest.approx(runs.losses("one fp32"), rel=1e-5)


@pytest.mark.parametrize("way, precision", LOW)
def test_in_16_bit_it_trains(runs, way, precision):
    found, wanted = runs.losses(f"{way} {precision}"), runs.losses("one fp32")
    assert found.keys() == wanted.keys()
    assert found[1] == pytest.approx(wanted[1], rel=0.02)


@pytest.mark.parametrize("source, target", MOVES)
def test_a_checkpoint_goes_on_elsewhere(runs, source, target):
    name = f"{source} to {target}"
    assert list(runs.losses(name)) == list(range(HALF + 1, STEPS + 1))
    assert_equal_runs(runs, name, "one adamw")


@pytest.mark.parametrize("way", ON_FOUR)
def test_a_checkpoint_goes_on_bitwise_in_the_same_way(runs, way):
    again, whole = runs.losses(f"{way} fp32 again"), runs.losses(f"{way} fp32")
    assert again == {step: whole[step] for step in range(HALF + 1, STEPS + 1)}
    again, whole = runs.tensors(f"{way} fp32 again"), runs.tensors(f"{way} fp32")
    assert again.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(again[key], value), key


def test_shards_that_do_not_divide_the_ranks_are_refused():
    six = Runtime(world_size=6, group=object())
    with pytest.raises(ValueError, match=r"train\.shards: got 4 with 6 processes; want a divisor"):
        wrap(torch.nn.Linear(2, 2), [], mode="hsdp", shards=4, runtime=six, low_dtype=None)
