# SPDX-License-Identifier: Apache-2.0
"""One norm over both towers bounds the gradients: of the true gradients, whatever shards, replicas and loss scale."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from clipkit import create_model
from clipkit.optim import Lamb
from clipkit.train.parallelize import clip_gradients
from clipkit.train.step import TrainStep
from tests.parallel.ranks import run_on_ranks
from tests.train import tiny
from tests.train.test_gradcache import make_batch, make_step


def model_with_gradients(size: float = 1.0) -> torch.nn.Module:
    torch.manual_seed(0)
    model = create_model("vit-tiny-32px", **tiny.MODEL)
    for number, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.grad = torch.randn(parameter.shape, generator=generator) * size
    return model


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()
        for name, grad in ((name, parameter.grad) for name, parameter in model.named_parameters())
        if grad is not None
    }


@pytest.mark.parametrize("bound", [None, 1.0, 1e6])
def test_the_norm_is_that_of_all_parameters_together(bound):
    model, wanted = model_with_gradients(), model_with_gradients()
    before = gradients_of(model)
    norm = clip_gradients(list(model.parameters()), bound)
    total = torch.cat([gradient.double().flatten() for gradient in before.values()]).norm()
    assert norm.item() == pytest.approx(total.item(), rel=1e-6)
    if bound is not None:
        torch.nn.utils.clip_grad_norm_(wanted.parameters(), bound)
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, gradients_of(wanted)[name], rtol=1e-6, atol=0)
    after = torch.cat([gradient.flatten() for gradient in gradients_of(model).values()]).norm()
    assert after.item() == pytest.approx(min(total.item(), bound or torch.inf), rel=1e-5)


def test_a_tower_without_gradients_is_left_out():
    model = model_with_gradients()
    model.visual.zero_grad(set_to_none=True)
    norm = clip_gradients(list(model.parameters()), 1.0)
    after = torch.cat([gradient.flatten() for gradient in gradients_of(model).values()]).norm()
    assert norm > 1.0
    assert after.item() == pytest.approx(1.0, rel=1e-5)


def _shards_and_replicas(rank: int) -> None:
    """FSDP2's shards (some ranks hold nothing of small ones) beside the scale's replica, against whole tensors."""
    whole = model_with_gradients()
    model = model_with_gradients()
    gradients = gradients_of(model)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for parameter in model.parameters():
        parameter.grad = None
    fully_shard(model, mesh=mesh, ignored_params={model.logit_scale})
    for name, parameter in model.named_parameters():
        grad = gradients[name]
        sharded = isinstance(parameter, DTensor)
        parameter.grad = distribute_tensor(grad, mesh, parameter.placements) if sharded else grad
    wanted = clip_gradients(list(whole.parameters()), 0.5)
    norm = clip_gradients(list(model.parameters()), 0.5)
    assert norm.item() == pytest.approx(wanted.item(), rel=1e-6)
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, whole.get_parameter(name).grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("ranks", [2, 4])
def test_shards_have_the_norm_of_the_whole(ranks):
    run_on_ranks(ranks, _shards_and_replicas)


# In the step: after unscaling, before the optimizer


def make(tmp_path, precision: str, scale: float = 1.0) -> TrainStep:
    """A step with LAMB and a bound of 0.01."""
    step = make_step(tmp_path, accumulation=1, precision=precision, optim__name="lamb")
    assert isinstance(step.optimizer, Lamb)
    step.config = dataclasses.replace(step.config, optim=dataclasses.replace(step.config.optim, grad_clip=0.01))
    if precision == "fp16":
        step.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return step


def test_what_is_clipped_is_unscaled(tmp_path):
    """Loss scales that are powers of two: norms and clipped gradients are the same to fp16's rounding."""
    results = []
    for scale in (16.0, 1024.0):
        step = make(tmp_path, "fp16", scale)
        norm = step(make_batch(12, torch.float32), 0).grad_norm
        clipped = torch.cat([parameter.grad.flatten() for parameter in step.module.parameters()])
        results.append((norm, clipped))
        assert norm > 0.02, "or nothing is clipped"
        assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=5e-3, atol=0)
    cosine = torch.nn.functional.cosine_similarity(results[0][1], results[1][1], dim=0)
    assert cosine > 0.999


def test_lamb_s_moments_are_of_clipped_gradients(tmp_path):
    step = make(tmp_path, "fp32")
    step(make_batch(12, torch.float32), 0)
    blend = 1 - step.config.optim.betas[0]
    means = torch.cat([step.optimizer.state[p]["exp_avg"].flatten() for p in step.module.parameters()])
    assert (means / blend).norm().item() == pytest.approx(0.01, rel=1e-4)


def test_an_overflow_is_not_clipped_into_a_step(tmp_path):
    """A norm of infinity would clip every other gradient to zero; the step is left out instead."""
    step = make(tmp_path, "fp16", 2.0**60)
    before = {name: parameter.detach().clone() for name, parameter in step.module.named_parameters()}
    result = step(make_batch(12, torch.float32), 0)
    assert result.skipped
    assert not result.grad_norm.isfinite()
    assert step.precision.scaler.get_scale() == 2.0**59
    for name, parameter in step.module.named_parameters():
        assert torch.equal(parameter, before[name]), name
