# SPDX-License-Identifier: Apache-2.0
"""BatchNorm in the trainer: every batch counted once, equal on every rank, and in checkpoints to the last bit."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from clipkit.cli.export import run as export
from clipkit.encoders.batch_norm import running_statistics
from clipkit.recipes import create_recipe
from clipkit.train import Ending, parse_config
from clipkit.train.build import build_step
from clipkit.train.loading import load_run
from clipkit.train.parallelize import replica
from clipkit.train.runtime import Runtime
from clipkit.train.step import TrainStep, split, total_loss
from tests.parallel.ranks import run_on_ranks
from tests.train import tiny
from tests.train.test_gradcache import assert_same, gradients, make_batch

MODEL = {
    **{key: value for key, value in tiny.MODEL.items() if not key.startswith("vision.")},
    "vision.image_size": 32,  # a last map of 1 x 1: one row alone in a micro-batch has no variance there
    "vision.width": 4,
}


def settings(data, out, **train):
    tree = tiny.settings(data, out, model__name="resnet-tiny-64px", model__overrides=MODEL)
    tree["train"] = {**tree["train"], "precision": "fp64", **train}
    return tree


def make_step(folder, *, runtime: Runtime | None = None, checkpointing: bool = False, **train) -> TrainStep:
    tree = settings(folder / "data", folder / "run", **train)
    tree["model"]["grad_checkpointing"] = checkpointing
    config = parse_config(tree)
    torch.manual_seed(0)
    recipe = create_recipe(config)
    module = recipe.build()
    for block in module.visual.bottlenecks():
        torch.nn.init.ones_(block.bn3.weight)  # at 0, as published, the branches would not be seen
    return build_step(config, runtime or Runtime(), recipe, module, total_steps=8)


def statistics(module) -> list[torch.Tensor]:
    return [values.clone() for values in running_statistics(module)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_enter_once_and_are_replayed_exactly(tmp_path, checkpointing):
    """The reference keeps every micro-batch's graph, so that each passes its BatchNorms once."""
    batch = make_batch(11)
    parted = make_step(tmp_path, accumulation=3, checkpointing=checkpointing)
    reference = make_step(tmp_path)
    parted(batch, 0)
    outputs = [reference.recipe.encode(part) for part in split(batch, 3)]
    features = {name: torch.cat([part[name] for part in outputs]) for name in ("image_features", "text_features")}
    features["logit_scale"] = outputs[0]["logit_scale"]
    total_loss(reference.recipe.losses(features, batch), {}).backward()
    torch.nn.utils.clip_grad_norm_(reference.module.parameters(), 1.0)
    assert_same(gradients(parted), gradients(reference), 1e-9)
    for (name, ours), theirs in zip(parted.module.named_buffers(), reference.module.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert parted.module.visual.bn1.num_batches_tracked == 3


def mean_over_ranks(values: list[torch.Tensor]) -> list[torch.Tensor]:
    for value in values:
        dist.all_reduce(value)
    return [value / dist.get_world_size() for value in values]


def on_rank(rank: int, folder) -> None:
    runtime = Runtime(rank=rank, world_size=2, group=dist.group.WORLD)
    features = []
    for parallel in ("ddp", "fsdp2"):
        for accumulation in (1, 2):
            step = make_step(folder, runtime=runtime, parallel=parallel, accumulation=accumulation)
            module = step.module.module if parallel == "ddp" else step.module
            alone = make_step(folder, accumulation=accumulation).module
            rows = make_batch(7) if rank == 0 else make_batch(1)
            for part in split(rows, accumulation):
                alone.encode_image(part.pixels)
            expected = mean_over_ranks(statistics(alone))
            step(rows, 0)
            for found, wanted in zip(statistics(module), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
            assert module.visual.bn1.num_batches_tracked == accumulation
            step(rows, 1)
            shares: list[object] = [None, None]
            dist.all_gather_object(shares, dict(module.named_buffers()))
            assert all(torch.equal(shares[0][name], shares[1][name]) for name in shares[0])
            model = replica(module).double().eval()
            with torch.no_grad():
                features.append(model.encode_image(make_batch(2).pixels))
    narrow = make_step(folder, runtime=runtime, parallel="fsdp2", precision="bf16")
    result = narrow(make_batch(4, torch.float32), 0)
    assert result.loss.isfinite()
    assert {values.dtype for values in statistics(narrow.module)} == {torch.float32}
    for one_way, other in ((0, 2), (1, 3)):
        torch.testing.assert_close(features[one_way], features[other], rtol=1e-5, atol=1e-6)
    for kind in features:
        both = [torch.empty_like(kind) for _ in range(2)]
        dist.all_gather(both, kind)
        assert torch.equal(both[0], both[1])


def test_running_statistics_are_the_mean_over_ranks_under_ddp_and_fsdp2(tmp_path):
    run_on_ranks(2, on_rank, tmp_path)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """On two ranks: six steps at once, and six with a stop after three, at no planned checkpoint."""
    base = tmp_path_factory.mktemp("statistics")
    whole, stopped = (settings(data, base / name, steps=6, accumulation=2) for name in ("whole", "stopped"))
    (base / "store").mkdir()
    tiny.run_on_ranks(2, [{"tree": whole}, {"tree": stopped, "stop": [1, 3]}, {"tree": stopped}], base / "store")
    assert json.loads((base / "store" / "endings-0.json").read_text())[1] == Ending.PREEMPTED.name
    return base


def test_a_resumed_run_ends_with_the_same_bits(runs):
    whole, resumed = (tiny.checkpoint_tensors(runs / name, 6) for name in ("whole", "stopped"))
    assert sum("running_" in name for name in whole) == 2 * sum("num_batches_tracked" in name for name in whole) > 0
    assert whole["model.visual.bn1.num_batches_tracked"] == 12
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_a_trained_model_is_exported_with_its_statistics(runs, tmp_path, open_clip):
    model, _, _ = load_run(runs / "whole")
    trained = tiny.checkpoint_tensors(runs / "whole", 6)
    for name, value in model.named_buffers():
        torch.testing.assert_close(value, trained[f"model.{name}"], check_dtype=False)
    path = tmp_path / "m.safetensors"
    assert export(argparse.Namespace(run_dir=runs / "whole", out=path, layout="open_clip", step=None)) == 0
    peer = open_clip.CLIP(**json.loads(path.with_suffix(".json").read_text())).eval()
    peer.load_state_dict(load_file(path), strict=True)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(pixels), peer.encode_image(pixels), rtol=1e-5, atol=1e-6)
