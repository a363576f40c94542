# SPDX-License-Identifier: Apache-2.0
"""Each optimizer by its name: the rule written down once more in float64, whole state, and no wait for a rate."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from clipkit.train.config import LambConfig, LionConfig, OptimConfig, ScaleScheduleConfig, SgdConfig
from clipkit.train.optimizers import build_optimizer
from clipkit.train.state import _materialise
from tests.parallel.ranks import run_on_ranks

LR, LR_SCALE, DECAY, BETAS, EPS = 0.01, 0.003, 0.1, (0.9, 0.98), 1e-6
COMMON = {"lr": LR, "lr_scale": LR_SCALE, "weight_decay": DECAY, "betas": BETAS, "eps": EPS}
SETTINGS = {
    "adamw": OptimConfig("adamw", **COMMON),
    "lamb": OptimConfig("lamb", **COMMON),
    "lamb, every tensor": OptimConfig("lamb", **COMMON, lamb=LambConfig("paper")),
    "lion": OptimConfig("lion", **COMMON, lion=LionConfig((0.8, 0.95))),
    "muon": OptimConfig("muon", **COMMON),
    "sgd": OptimConfig("sgd", **COMMON, sgd=SgdConfig(0.7)),
    "nesterov": OptimConfig("sgd", **COMMON, sgd=SgdConfig(0.7, nesterov=True)),
}
NAMES = list(SETTINGS)


class Model(nn.Module):
    """A decayed matrix, an undecayed vector and a scale."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 4, dtype=dtype)
        self.logit_scale = nn.Parameter(torch.tensor(2.6, dtype=dtype))

    def give_gradients(self, step: int, factor: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(step)
        for parameter in self.parameters():
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = (gradient * factor).to(parameter.dtype)


def build(model: Model, name: str, **changes: object) -> torch.optim.Optimizer:
    return build_optimizer(dataclasses.replace(SETTINGS[name], **changes), model, [])


# The rules, for one tensor at step number t from 1: (weight, gradient, state, t, rate, decay, is the scale) -> weight


def adam_direction(g, state, t):
    state["m"] = BETAS[0] * state.get("m", 0) + (1 - BETAS[0]) * g
    state["v"] = BETAS[1] * state.get("v", 0) + (1 - BETAS[1]) * g * g
    return state["m"] / (1 - BETAS[0] ** t) / ((state["v"] / (1 - BETAS[1] ** t)) ** 0.5 + EPS)


def adamw(w, g, state, t, lr, decay, is_scale):
    return w - lr * decay * w - lr * adam_direction(g, state, t)


def lamb(always):
    def rule(w, g, state, t, lr, decay, is_scale):
        update = adam_direction(g, state, t) + decay * w
        return w - lr * (w.norm() / update.norm() if decay or always else 1.0) * update

    return rule


def lion(w, g, state, t, lr, decay, is_scale):
    m = state.get("m", torch.zeros_like(w))
    state["m"] = 0.95 * m + 0.05 * g
    return w - lr * decay * w - lr * (0.8 * m + 0.2 * g).sign()


def sgd(nesterov):
    def rule(w, g, state, t, lr, decay, is_scale):
        momentum, g = 0.0 if is_scale else 0.7, g + decay * w
        state["m"] = momentum * state.get("m", 0) + g
        return w - lr * (g + momentum * state["m"] if nesterov else state["m"])

    return rule


RULES = {
    "adamw": adamw,
    "lamb": lamb(always=False),
    "lamb, every tensor": lamb(always=True),
    "lion": lion,
    "muon": adamw,  # without blocks: all that is not a hidden matrix
    "sgd": sgd(nesterov=False),
    "nesterov": sgd(nesterov=True),
}


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_are_those_of_the_rule_in_float64(name):
    model = Model()
    optimizer = build(model, name)
    weights = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    states: dict[str, dict] = {key: {} for key in weights}
    for t in (1, 2, 3):
        model.give_gradients(t)
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.step()
        for (key, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
            is_scale = key == "logit_scale"
            options = (LR_SCALE if is_scale else LR, DECAY if key == "linear.weight" else 0.0, is_scale)
            weights[key] = RULES[name](weights[key], gradient, states[key], t, *options)
            # fused AdamW and LAMB count steps in fp32, and so take powers of the betas there
            torch.testing.assert_close(parameter.detach(), weights[key], rtol=1e-6, atol=1e-8, msg=f"{key}, step {t}")


@pytest.mark.parametrize("name", ["lion", "sgd", "nesterov"])
def test_rules_without_counters_hold_to_the_last_digits(name):
    model = Model()
    optimizer = build(model, name)
    weight, state = model.linear.weight.detach().clone(), {}
    for t in (1, 2, 3):
        model.give_gradients(t)
        weight = RULES[name](weight, model.linear.weight.grad, state, t, LR, DECAY, False)
        optimizer.step()
    torch.testing.assert_close(model.linear.weight.detach(), weight, rtol=1e-14, atol=1e-15)


class _HostReads(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: reading one number of a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host reads a tensor"
        return func(*args, **(kwargs or {}))


def test_a_read_by_the_host_is_seen():
    with pytest.raises(AssertionError, match="the host reads"), _HostReads():
        torch.ones(3).add_(torch.ones(3), alpha=torch.tensor(0.5))


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_that_is_a_tensor_gives_the_step_of_the_same_number_and_is_not_read(name):
    rate = torch.tensor(LR_SCALE / 3)
    models = Model(torch.float32), Model(torch.float32)
    optimizers = [build(model, name) for model in models]
    for model, optimizer, lr in zip(models, optimizers, (rate, rate.item()), strict=True):
        for group in optimizer.param_groups:
            if group["group"] == "scale":
                group["lr"] = lr
        for step in range(3):
            model.give_gradients(step)
            with _HostReads():
                optimizer.step()
    for ours, wanted in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-7, atol=0)
    assert models[0].logit_scale != Model(torch.float32).logit_scale


@pytest.mark.parametrize("name", NAMES)
def test_allocating_the_state_changes_nothing_whenever_it_is_done(name):
    """At the start, as when a checkpoint is loaded, and later, when one parameter got its first gradient late."""
    straight, model = Model(), Model()
    optimizers = build(straight, name), build(model, name)
    for step in range(4):
        for each, optimizer in zip((straight, model), optimizers, strict=True):
            each.give_gradients(step)
            if step < 2:
                each.linear.bias.grad = None
            if each is model:
                gradients = [parameter.grad for parameter in model.parameters()]
                before = [parameter.detach().clone() for parameter in model.parameters()]
                _materialise(optimizer)
                for parameter, old, gradient in zip(model.parameters(), before, gradients, strict=True):
                    assert torch.equal(parameter, old)
                    parameter.grad = gradient
            optimizer.step()
        for ours, wanted in zip(model.parameters(), straight.parameters(), strict=True):
            assert torch.equal(ours, wanted), step


def test_allocating_the_state_keeps_the_masters_of_16_bit_weights():
    model = Model(torch.bfloat16)
    optimizer = build(model, "lamb")
    _materialise(optimizer)
    for parameter in model.parameters():
        assert torch.equal(optimizer.state[parameter]["master"], parameter.float())


@pytest.mark.parametrize("name", NAMES)
def test_an_overflowed_step_changes_neither_weights_nor_state(name):
    models = Model(torch.float32), Model(torch.float32)
    optimizers = [build(model, name) for model in models]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(1))
    for step, overflows in enumerate((True, False, True, False)):
        if not overflows:
            models[1].give_gradients(step)
            optimizers[1].step()
        models[0].give_gradients(step, factor=scaler.get_scale())
        if overflows:
            models[0].linear.weight.grad[1, 1] = torch.inf
        scaler.unscale_(optimizers[0])
        scaler.step(optimizers[0])
        scaler.update()
        for ours, wanted in zip(*(model.parameters() for model in models), strict=True):
            assert torch.equal(ours, wanted), step


def _overflow_on_one_rank(rank: int) -> None:
    for name in (name for name in NAMES if name != "muon"):  # which takes no shards
        model = Model(torch.float32)
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)), ignored_params={model.logit_scale})
        optimizer, scaler = build(model, name), torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(torch.ones(1))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        if rank == 1:
            model.linear.weight.grad.to_local()[0, 0] = torch.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 4.0, name
        for parameter, old in zip(model.parameters(), before, strict=True):
            assert torch.equal(_local(parameter), _local(old)), name


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def test_an_overflow_in_one_rank_s_shard_leaves_the_step_out_on_all():
    run_on_ranks(2, _overflow_on_one_rank)


def test_lion_without_its_library_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ValueError, match=r"optim\.name: got lion, and pytorch-optimizer is not.*clipkit-torch\[lion\]"):
        build_optimizer(SETTINGS["lion"], Model(), [])


def test_only_lion_imports_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    for name in NAMES:
        if name != "lion":
            build(Model(), name)


def test_step_thresh_without_a_scale_to_follow_is_refused_before_the_first_step():
    model = Model()
    model.logit_bias = nn.Parameter(torch.zeros(()))
    model.logit_scale.requires_grad_(False)
    rule = ScaleScheduleConfig("step_thresh")
    with pytest.raises(ValueError, match=r"step_thresh with no trained logit_scale"):
        build(model, "adamw", scale_schedule=rule)
    model.logit_bias.requires_grad_(False)
    build(model, "adamw", scale_schedule=rule)  # a constant temperature has no rate
