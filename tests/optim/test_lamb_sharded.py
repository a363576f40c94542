# SPDX-License-Identifier: Apache-2.0
"""LAMB on shards takes the step of LAMB on whole tensors: trust ratios do not depend on how a model is cut."""

import itertools
import os

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from clipkit.optim import Lamb
from tests.optim.test_lamb import OPTIONS, RULES, give_gradients, parameters
from tests.parallel.ranks import run_on_ranks

SHAPES = [(7, 5), (1, 3), (40,), (3, 2)]


def shard(tensor, mesh, row_shard):
    """Rows over the last dimension of the mesh; the last tensor is a replica, the one before a plain tensor."""
    return distribute_tensor(tensor, mesh, [Replicate(), row_shard])


def step_sharded_and_whole(rank):
    os.environ["CLIPKIT_CUDA_ON_HOST"] = "1"
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicate", "shard"))
    for trust in RULES:
        for dtype, backend in itertools.product((torch.float32, torch.bfloat16), ("torch", "cpu", "cuda")):
            whole = parameters(SHAPES, dtype)
            placements = [Shard(0), Shard(0), None, Replicate()]
            parts = [
                nn.Parameter(tensor.detach().clone() if cut is None else shard(tensor.detach(), mesh, cut))
                for tensor, cut in zip(whole, placements, strict=True)
            ]
            options = {**OPTIONS, "weight_decay": 0.05, "trust": trust, "backend": backend}
            optimizers = Lamb(whole, **options), Lamb(parts, **options)
            for step in range(3):
                give_gradients(whole, step)
                for tensor, part, cut in zip(whole, parts, placements, strict=True):
                    part.grad = tensor.grad.clone() if cut is None else shard(tensor.grad, mesh, cut)
                for optimizer in optimizers:
                    optimizer.step()
            for tensor, part, cut in zip(whole, parts, placements, strict=True):
                found = part.detach() if cut is None else part.detach().full_tensor()
                torch.testing.assert_close(
                    found, tensor.detach(), rtol=2e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6
                )


def test_sharded_steps_equal_whole_ones():
    pytest.importorskip("clipkit._native", reason="clipkit was installed without its compiled part")
    run_on_ranks(2, step_sharded_and_whole)
