# SPDX-License-Identifier: Apache-2.0
"""An optimizer split over ranks takes the steps of a whole one, and holds its share of the state."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.distributed as dist

from clipkit import create_model
from clipkit.train.config import LambConfig, OptimConfig, ScaleScheduleConfig
from clipkit.train.optimizers import build_optimizer
from clipkit.train.rates import group_rate
from clipkit.train.state import training_tensors
from clipkit.train.zero import local_part
from tests.parallel.ranks import run_on_ranks
from tests.train import tiny

STEPS = 4
SETTINGS = {
    "adamw": OptimConfig("adamw", grad_clip=1.0),
    "lamb": OptimConfig("lamb", lr=0.02, lr_scale=1e-3),
    "lamb, every tensor": OptimConfig("lamb", lr=0.02, lr_scale=1e-3, lamb=LambConfig(trust="paper")),
    "lion": OptimConfig("lion", lr=1e-4),
    "muon": OptimConfig("muon", lr=1e-3),
    "sgd": OptimConfig("sgd", lr=0.1),
}


class NoRecipe:
    def state_dict(self):
        return {}


def model(**overrides):
    torch.manual_seed(0)
    return create_model("vit-tiny-32px", **overrides)


def optimizer_of(module, settings, group=None):
    return build_optimizer(settings, module, module.blocks(), split_over=group)


def give_gradients(module, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def take_steps(module, optimizer, settings, steps):
    """With a rate for each step, and FastCLIP's rule for the scale's, which is a tensor."""
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group_rate(group, step, settings, total_steps=STEPS)
        give_gradients(module, step)
        optimizer.step()


def assert_same_weights(left, right, exact=True):
    for (name, one), other in zip(left.named_parameters(), right.parameters(), strict=True):
        if exact:
            assert torch.equal(one, other), name
        else:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7, msg=name)


def bytes_of_state(optimizer):
    return sum(value.nbytes for state in local_part(optimizer).state.values() for value in state.values())


def split_and_whole(rank):
    world = dist.get_world_size()
    for name, settings in SETTINGS.items():
        settings = dataclasses.replace(settings, scale_schedule=ScaleScheduleConfig("step_thresh", threshold=0.072))
        whole, split = model(**tiny.MODEL), model(**tiny.MODEL)
        optimizers = optimizer_of(whole, settings), optimizer_of(split, settings, dist.group.WORLD)
        take_steps(whole, optimizers[0], settings, range(STEPS))
        take_steps(split, optimizers[1], settings, range(STEPS))
        assert_same_weights(split, whole, exact=name != "muon")  # whose matrices are iterated in other batches
        _assert_shared(optimizers, world, name)
        _assert_same_tensors(split, optimizers[1], whole, optimizers[0], name)


def _assert_shared(optimizers, world, name):
    """All of the state is somewhere, once, and no rank has more than its share by more than the largest tensor's."""
    whole, mine = (bytes_of_state(optimizer) for optimizer in optimizers)
    every = torch.zeros(world, dtype=torch.int64)
    every[dist.get_rank()] = mine
    dist.all_reduce(every)
    largest = max(sum(value.nbytes for value in state.values()) for state in local_part(optimizers[0]).state.values())
    assert int(every.sum()) == whole, name
    assert int(every.max()) <= whole / world + largest, name


def _assert_same_tensors(split, part, whole, optimizer, name):
    """A checkpoint of this rank has its part of the whole one's tensors under the same names."""
    wanted = training_tensors(whole, optimizer, NoRecipe())
    found = training_tensors(split, part, NoRecipe())
    assert set(found) < set(wanted), name
    own = {key for key in found if key.startswith("optimizer.")}
    keys: list = [None] * dist.get_world_size()
    dist.all_gather_object(keys, own)
    assert set().union(*keys) == {key for key in wanted if key.startswith("optimizer.")}, name
    for key in own:
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-5, atol=1e-7, msg=f"{name} {key}")


@pytest.mark.parametrize("ranks", [2, 4])
def test_its_steps_state_and_names_are_those_of_a_whole_one(ranks):
    pytest.importorskip("pytorch_optimizer")
    run_on_ranks(ranks, split_and_whole)


def one_message_for_each_owner(rank):
    settings = SETTINGS["muon"]
    module = model()
    optimizer = optimizer_of(module, settings, dist.group.WORLD)
    broadcast, sent = dist.broadcast, []

    def counted(tensor, *arguments, **options):
        sent.append(tensor.nbytes)
        return broadcast(tensor, *arguments, **options)

    dist.broadcast = counted
    take_steps(module, optimizer, settings, range(1))
    dist.broadcast = broadcast
    assert len(sent) == dist.get_world_size()
    assert sum(sent) == sum(parameter.nbytes for parameter in module.parameters())
    for name, parameter in module.named_parameters():
        assert parameter.ndim < 2 or parameter.data_ptr() % 16 == 0, f"{name} starts at no multiple of 16 bytes"


def scaled(rank):
    """A GradScaler leaves the same step out on every rank, and the others are those of the whole optimizer."""
    settings = SETTINGS["sgd"]
    modules = model(**tiny.MODEL), model(**tiny.MODEL)
    optimizers = optimizer_of(modules[0], settings), optimizer_of(modules[1], settings, dist.group.WORLD)
    for module, optimizer in zip(modules, optimizers, strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(3):
            scaler.scale(torch.zeros(()))
            give_gradients(module, step)
            if step == 0:
                next(module.parameters()).grad.fill_(torch.inf)
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 4.0
    assert_same_weights(*modules)


def one_message_and_scaled(rank):
    one_message_for_each_owner(rank)
    scaled(rank)


def test_weights_travel_in_one_message_for_each_owner_stay_aligned_and_go_with_loss_scaling():
    run_on_ranks(2, one_message_and_scaled)


def test_without_a_group_an_optimizer_is_its_own_part():
    optimizer = optimizer_of(model(**tiny.MODEL), SETTINGS["adamw"])
    assert local_part(optimizer) is optimizer
