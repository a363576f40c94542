# SPDX-License-Identifier: Apache-2.0
"""Split over ranks, with unequal and empty shares, every loss and every gradient is what one process computes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import clipkit
from clipkit.functional import clip_loss
from tests.parallel.ranks import run_on_ranks
from tests.reference.cases import CASES, value_and_gradients
from tests.reference.naive import unit

SHARES = {2: [(5, 5), (7, 3), (0, 10)], 4: [(3, 3, 3, 3), (1, 4, 0, 2)]}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_losses_and_gradients_equal_one_process(world_size):
    run_on_ranks(world_size, _every_case)


@pytest.mark.slow
def test_on_two_ranks():
    """Starting processes costs seconds, so these share them: a DDP step, a compiled loss, an error on every rank."""
    run_on_ranks(2, _details)


def _details(rank: int) -> None:
    _ddp_step(rank)
    _compiled(rank)
    _different_widths(rank)


def _every_case(rank: int) -> None:
    for shares in SHARES[dist.get_world_size()]:
        start = sum(shares[:rank])
        mine = slice(start, start + shares[rank])
        for case in CASES:
            inputs, constants = case.make(sum(shares), 6, torch.float64)
            whole = value_and_gradients(case.ours, inputs, constants)
            split = {name: value if name in case.pooled else value[mine] for name, value in inputs.items()}
            ours = value_and_gradients(
                lambda case=case, **kw: case.ours(**kw, group=dist.group.WORLD),
                split,
                {name: value[mine] for name, value in constants.items()},
            )
            for name, expected in whole.items():
                where = f"{case.name} {name}, shares {shares}, rank {rank}"
                if name == "loss" or name in ("s", "bias"):
                    actual = ours[name]  # already global, on every rank
                elif name in case.pooled:
                    actual = ours[name].clone()  # a parameter of every rank: DDP takes the mean
                    dist.all_reduce(actual)
                    actual /= dist.get_world_size()
                else:
                    actual, expected = ours[name] / dist.get_world_size(), expected[mine]
                torch.testing.assert_close(
                    actual, expected, rtol=1e-10, atol=1e-12, msg=lambda m, where=where: f"{where}: {m}"
                )


def _different_widths(rank: int) -> None:
    """Ranks that disagree about d are told so on every rank, not left to hang."""
    features = torch.ones(2, 3 + rank)
    with pytest.raises(ValueError, match=r"widths \[3, 4\] on different ranks"):
        clip_loss(features, features, 1.0, group=dist.group.WORLD)


def _ddp_step(rank: int) -> None:
    """Two towers and the scale under DDP, fp32, unequal shares: one step's gradients equal the single-process ones."""

    class Towers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.image = torch.nn.Parameter(torch.randn(9, 6, generator=generator, dtype=torch.float64))
            self.text = torch.nn.Parameter(torch.randn(4, 6, generator=generator, dtype=torch.float64))
            self.logit_scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, pixels, tokens):
            return pixels @ self.image, tokens @ self.text, self.logit_scale.exp()

    pixels, tokens = unit(11, 9, 0), unit(11, 4, 1)
    mine = slice(0, 8) if rank == 0 else slice(8, 11)
    alone, wrapped = Towers(), torch.nn.parallel.DistributedDataParallel(Towers())
    clip_loss(*alone(pixels, tokens)).backward()
    loss = clipkit.ClipLoss()(*wrapped(pixels[mine], tokens[mine]))
    loss.backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(
            wrapped.module.get_parameter(name).grad, parameter.grad, rtol=1e-10, atol=1e-13, msg=lambda m, n=name: n + m
        )


def _compiled(rank: int) -> None:
    """No graph break, with a batch whose global size is known at run time only."""
    features = [unit(3 + rank, 5, seed, torch.float32).requires_grad_() for seed in (0, 1)]

    def twice(image, text):
        return 2 * clip_loss(image, text, 9.0, group=dist.group.WORLD)

    eager = torch.autograd.grad(twice(*features), features)
    compiled = torch.autograd.grad(torch.compile(twice, fullgraph=True, backend="aot_eager")(*features), features)
    for ours, expected in zip(compiled, eager, strict=True):
        assert torch.equal(ours, expected)
