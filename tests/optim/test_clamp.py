# SPDX-License-Identifier: Apache-2.0
"""Bounds on a parameter hold in its fp32 master: a step goes on from the bound, not from where the master had been."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from clipkit.optim import Lamb, Muon
from tests.parallel.ranks import run_on_ranks

HIGH = math.log(100.0)
RATE = 0.0625


def push(optimizer, parameter, direction, steps=1):
    """Steps of exactly RATE: a gradient of one sign and size is Adam's direction of 1, and there is no weight decay."""
    for _ in range(steps):
        parameter.grad = torch.full_like(parameter, -direction)
        optimizer.step()


def muon(parameters, **options):
    """Without matrices: AdamW, which keeps no masters."""
    return Muon([{"params": parameters}], **options)


@pytest.mark.parametrize(
    "make, dtype", [(Lamb, torch.float32), (Lamb, torch.bfloat16), (Lamb, torch.float16), (muon, torch.float32)]
)
def test_a_step_goes_on_from_the_bound(make, dtype):
    scale = nn.Parameter(torch.tensor(4.5, dtype=dtype))
    optimizer = make([scale], lr=RATE, betas=(0.0, 0.0), weight_decay=0.0, eps=0.0)
    push(optimizer, scale, +1, steps=8)
    assert optimizer.weights_of(scale).item() == pytest.approx(5.0, abs=1e-5)
    optimizer.clamp_(scale, 0.0, HIGH)
    assert optimizer.weights_of(scale).item() == torch.tensor(HIGH).item(), "in fp32, whatever the parameter's type"
    assert scale.item() == torch.tensor(HIGH, dtype=dtype).item()
    push(optimizer, scale, -1)
    assert optimizer.weights_of(scale).item() == pytest.approx(HIGH - RATE, abs=1e-6)
    assert scale.item() == (torch.tensor(HIGH) - RATE).to(dtype).item()
    optimizer.clamp_(scale, 4.6, HIGH)
    assert optimizer.weights_of(scale).item() == pytest.approx(4.6)


def test_bounds_on_the_parameter_alone_would_not_hold():
    """Why there is a method: the next step brings back what the master had become."""
    scale = nn.Parameter(torch.tensor(4.5, dtype=torch.bfloat16))
    optimizer = Lamb([scale], lr=RATE, betas=(0.0, 0.0), eps=0.0)
    push(optimizer, scale, +1, steps=8)
    scale.data.clamp_(0.0, HIGH)
    push(optimizer, scale, -1)
    assert scale.item() == pytest.approx(5.0 - RATE, abs=0.02)
    assert scale.item() > HIGH


def test_before_the_first_step_there_is_the_parameter_alone():
    scale = nn.Parameter(torch.tensor(7.0, dtype=torch.bfloat16))
    optimizer = Lamb([scale])
    optimizer.clamp_(scale, 0.0, HIGH)
    assert optimizer.weights_of(scale) is scale
    assert scale.item() == torch.tensor(HIGH, dtype=torch.bfloat16).item()
    assert not optimizer.state, "asking made no state"


def _clamp_shards(rank):
    mesh = init_device_mesh("cpu", (2,))
    values = torch.tensor([4.5, -4.5, 4.5], dtype=torch.bfloat16)
    weight = nn.Parameter(distribute_tensor(values, mesh, [Shard(0)]))
    optimizer = Lamb([weight], lr=RATE, betas=(0.0, 0.0), eps=0.0)
    for direction in (+1, +1, -1):
        weight.grad = distribute_tensor(torch.full((3,), -float(direction), dtype=torch.bfloat16), mesh, [Shard(0)])
        optimizer.step()
        optimizer.clamp_(weight, -4.5, 4.5)
    wanted = torch.tensor([4.4375, -4.4375, 4.4375])
    torch.testing.assert_close(optimizer.weights_of(weight).full_tensor(), wanted, rtol=1e-6, atol=0)
    assert torch.equal(weight.detach().full_tensor(), wanted.bfloat16())


def test_masters_that_are_shards_are_bounded_too():
    run_on_ranks(2, _clamp_shards)
