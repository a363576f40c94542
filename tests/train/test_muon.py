# SPDX-License-Identifier: Apache-2.0
"""Muon: what it orthogonalises, what it leaves to AdamW, and that its state is all there is."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from clipkit.encoders import create_model
from clipkit.optim import Muon, hidden_matrices, parameter_groups
from clipkit.optim.muon import orthogonalise
from clipkit.train import parse_config
from clipkit.train import train as train_run
from clipkit.train.state import _materialise
from tests.train import tiny

RANKS_TOLERANCE = 1e-6  # the orthogonal factors are float32's, whatever the gradients are


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 2), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 9)
    )


def optimizer_of(module: nn.Module, weight_decay: float = 0.1) -> Muon:
    groups = parameter_groups(
        module.named_parameters(), lr=1e-2, weight_decay=weight_decay, hidden=hidden_matrices([module]), lr_hidden=0.1
    )
    return Muon(groups)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(5, 3, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 16, 64), (2, 64, 16), (1, 1, 7)])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e6])
def test_singular_values_become_about_one_whatever_their_size(shape, size):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape) * size, 8))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_singular_vectors_stay():
    torch.manual_seed(0)
    matrix = torch.randn(1, 12, 20)
    u, _, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    turned = u.T @ orthogonalise(matrix)[0] @ vh.T
    torch.testing.assert_close(turned, torch.diag(turned.diagonal()), atol=1e-5, rtol=0)


def test_a_zero_matrix_stays_zero():
    assert orthogonalise(torch.zeros(2, 3, 5)).count_nonzero() == 0


def test_updates_are_the_definition():
    module = nn.Linear(4, 12, bias=False)
    weight, mean = module.weight.detach().clone(), torch.zeros(12, 4)
    optimizer = Muon([{"params": [module.weight], "lr": 0.3, "weight_decay": 0.2, "muon": True}], momentum=0.9)
    torch.manual_seed(0)
    for _ in range(3):
        gradient = torch.randn(12, 4)
        module.weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        direction = orthogonalise((0.1 * gradient + 0.9 * mean)[None])[0]
        weight = weight * (1 - 0.3 * 0.2) - 0.3 * 3**0.5 * direction
    torch.testing.assert_close(module.weight.detach(), weight)


def test_everything_else_is_adamw():
    ours, theirs = small(), small()
    groups = parameter_groups(ours.named_parameters(), lr=1e-2, weight_decay=0.1)
    train(ours, Muon(groups, betas=(0.8, 0.9), eps=1e-7), 3)
    groups = parameter_groups(theirs.named_parameters(), lr=1e-2, weight_decay=0.1)
    train(theirs, torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=1e-7, fused=True), 3)
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(left, right)


def test_hidden_matrices_are_those_of_the_blocks_without_depthwise_kernels():
    model = create_model("conv-tiny-32px")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hidden = {names[id(parameter)] for parameter in hidden_matrices(model.blocks())}
    assert {"visual.layers.0.expand.weight", "transformer.resblocks.0.attn.in_proj_weight"} <= hidden
    for outside in ("token_embedding", "positional_embedding", "stem", "depthwise", "proj", "bias", "norm", "scale"):
        assert not any(
            outside in name.replace("in_proj", "").replace("c_proj", "").replace("out_proj", "") for name in hidden
        )


def test_a_resnets_hidden_matrices_are_its_kernels_and_projections():
    model = create_model("resnet-tiny-64px")
    visual = {id(p): n for n, p in model.visual.named_parameters()}
    hidden = {visual.get(id(parameter)) for parameter in hidden_matrices(model.visual.block_list())}
    assert {"layer1.0.conv2.weight", "layer4.0.downsample.0.weight", "attnpool.q_proj.weight"} <= hidden
    assert not {name for name in hidden if "embedding" in name or "bn" in name or name.startswith("conv")}


def test_allocating_the_state_first_changes_nothing():
    fresh, restored = small(), small()
    optimizer = optimizer_of(restored)
    _materialise(optimizer)
    train(restored, optimizer, 3)
    train(fresh, optimizer_of(fresh), 3)
    for left, right in zip(fresh.parameters(), restored.parameters(), strict=True):
        assert torch.equal(left, right)


def test_going_on_from_a_saved_state_is_bitwise_the_same():
    whole, module = small(), small()
    train(whole, optimizer_of(whole), 4)
    optimizer = optimizer_of(module)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        if step == 2:
            state, module = optimizer.state_dict(), copy.deepcopy(module)
            optimizer = optimizer_of(module)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        module(torch.randn(5, 3, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()
    for left, right in zip(whole.parameters(), module.parameters(), strict=True):
        assert torch.equal(left, right)


def test_vectors_and_no_iterations_are_refused():
    with pytest.raises(ValueError, match="matrices"):
        Muon([{"params": [nn.Parameter(torch.zeros(3))], "muon": True}])
    with pytest.raises(ValueError, match="iterations"):
        Muon([{"params": [nn.Parameter(torch.zeros(3, 3))], "muon": True}], iterations=0)


def test_sharded_matrices_are_refused(tmp_path):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        module = nn.Sequential(nn.Linear(4, 6))
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"sharded matrix.*train\.parallel=ddp or zero1, or optim\.name=adamw"):
            optimizer_of(module)
        Muon(parameter_groups(module.named_parameters(), lr=1e-2, weight_decay=0.1))  # AdamW's part may be sharded
    finally:
        dist.destroy_process_group()


def run_of(data: Path, out: Path, **changes: object) -> dict[str, object]:
    settings = tiny.settings(data, out, train__steps=5, **changes)
    return {**settings, "optim": {"name": "muon", "lr": 1e-3, "schedule": {"name": "constant", "warmup_steps": 2}}}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_under_ddp_equal_one_process(ranks, data, tmp_path, monkeypatch):
    """In float64, so that the order of sums hardly shows."""
    monkeypatch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
    trees = {name: run_of(data, tmp_path / name) for name in ("alone", "together")}
    for tree in trees.values():
        tree["train"]["precision"] = "fp64"
    train_run(parse_config(trees["alone"]))
    tiny.run_on_ranks(ranks, [{"tree": trees["together"]}], tmp_path)
    losses, wanted = (tiny.losses(tmp_path / name) for name in ("together", "alone"))
    assert losses == pytest.approx(wanted, rel=RANKS_TOLERANCE)
    tensors, wanted = (tiny.checkpoint_tensors(tmp_path / name, 5) for name in ("together", "alone"))
    assert any(name.endswith(".momentum") for name in wanted)
    for name, value in tensors.items():
        torch.testing.assert_close(value, wanted[name], rtol=RANKS_TOLERANCE, atol=RANKS_TOLERANCE, msg=name)


def test_a_run_goes_on_bitwise_from_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
    data = tiny.build_set(tmp_path)

    def run(out: str, steps: int) -> dict[str, torch.Tensor]:
        tree = run_of(data, tmp_path / out)
        tree["train"]["steps"] = steps
        train_run(parse_config(tree))
        return tiny.checkpoint_tensors(tmp_path / out, steps)

    whole = run("whole", 5)
    run("parts", 3)
    parts = run("parts", 5)
    assert any(name.endswith(".momentum") for name in whole)
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
