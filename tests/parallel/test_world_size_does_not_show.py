# SPDX-License-Identifier: Apache-2.0
"""Split over ranks, with unequal and empty shares, every loss and every gradient is what one process computes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import clipkit
from clipkit.functional import clip_loss
from tests.parallel.ranks import run_on_ranks
from tests.reference.cases import BY_NAME, CASES, value_and_gradients
from tests.reference.naive import unit

SHARES = {2: [(5, 5), (7, 3), (0, 10)], 4: [(3, 3, 3, 3), (1, 4, 0, 2)]}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_losses_and_gradients_equal_one_process(world_size):
    run_on_ranks(world_size, _every_case_and_subgroups)


@pytest.mark.slow
def test_on_two_ranks():
    """Starting processes costs seconds, so these share them: a DDP step, a compiled loss, errors on every rank."""
    run_on_ranks(2, _details)


def _details(rank: int) -> None:
    _ddp_step(rank)
    _compiled(rank)
    _different_features(rank)
    _one_rank_wants_less(rank)
    _one_rank_wants_nothing(rank)
    _a_backward_communicates_nothing(rank)


def _every_case_and_subgroups(rank: int) -> None:
    _every_case(rank)
    if dist.get_world_size() == 4:
        _two_groups_side_by_side(rank)


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


def _different_features(rank: int) -> None:
    """Ranks that disagree about d or the dtype are told so on every rank, not left to hang."""
    features = torch.ones(2, 3 + rank)
    with pytest.raises(ValueError, match=r"widths \[3, 4\] on different ranks"):
        clip_loss(features, features, 1.0, group=dist.group.WORLD)
    features = torch.ones(2 - 2 * rank, 3, dtype=(torch.bfloat16, torch.float32)[rank])
    with pytest.raises(ValueError, match=rf"another dtype than this rank's on rank {1 - rank}"):
        clip_loss(features, features, 1.0, group=dist.group.WORLD)


def _one_rank_wants_less(rank: int) -> None:
    """A rank without samples passes empty constants, where another trains one tower or both: it must take part."""
    mine = slice(0, 6) if rank == 0 else slice(6, 6)
    for case in (case for case in CASES if "s" in case.pooled):
        inputs, constants = case.make(6, 4, torch.float64)
        whole = value_and_gradients(case.ours, inputs, constants)
        for frozen in ("", "a", "b"):
            trained = {name for name in inputs if name in case.pooled or (rank == 0 and name != frozen)}
            leaves = {
                name: (value if name in case.pooled else value[mine]).clone().requires_grad_(name in trained)
                for name, value in inputs.items()
            }
            loss = case.ours(**leaves, **{n: v[mine] for n, v in constants.items()}, group=dist.group.WORLD)
            loss.backward()
            for name in trained & whole.keys():
                actual = leaves[name].grad / (1 if name in case.pooled else 2)
                torch.testing.assert_close(actual, whole[name], rtol=1e-10, atol=1e-12)


def _one_rank_wants_nothing(rank: int) -> None:
    """Rank 1 trains nothing and may call backward all the same; rank 0 gets what it gets when both train."""
    mine = (slice(0, 4), slice(4, 7))[rank]
    for case in CASES:
        inputs, constants = case.make(7, 4, torch.float64)
        whole = value_and_gradients(case.ours, inputs, constants)
        leaves = {
            name: (value if name in case.pooled else value[mine]).clone().requires_grad_(rank == 0)
            for name, value in inputs.items()
        }
        loss = case.ours(**leaves, **{n: v[mine] for n, v in constants.items()}, group=dist.group.WORLD)
        (3 * loss).backward()
        torch.testing.assert_close(loss.detach(), whole["loss"], rtol=1e-10, atol=0)
        for name, leaf in leaves.items():
            if rank == 1:
                assert leaf.grad is None
            elif name in ("s", "bias"):
                torch.testing.assert_close(leaf.grad, 3 * whole[name], rtol=1e-10, atol=1e-12)
            elif name not in case.pooled:
                torch.testing.assert_close(leaf.grad / 2, 3 * whole[name][mine], rtol=1e-10, atol=1e-12)


def _a_backward_communicates_nothing(rank: int) -> None:
    """Each rank walks backward alone, after the others have left: nobody can be waiting for anybody."""
    for turn in range(2):
        for case in CASES:
            inputs, constants = case.make(4, 3, torch.float32)
            leaves = {name: value.requires_grad_() for name, value in inputs.items()}
            loss = case.ours(**leaves, **constants, group=dist.group.WORLD)
            if rank == turn:
                loss.backward()


def _two_groups_side_by_side(rank: int) -> None:
    """Ranks 1, 3 and ranks 0, 2 each share a batch: a place in the group is not a rank of the world."""
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    group, mine = groups[rank % 2], slice(0, 4) if rank < 2 else slice(4, 7)
    inputs, _ = BY_NAME["clip"].make(7, 6, torch.float64)
    whole = value_and_gradients(BY_NAME["clip"].ours, inputs, {})
    image, text = (inputs[name][mine].requires_grad_() for name in ("a", "b"))
    loss = clipkit.ClipLoss(group=group)(image, text, inputs["s"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), whole["loss"])
    torch.testing.assert_close([image.grad / 2, text.grad / 2], [whole["a"][mine], whole["b"][mine]])
    with pytest.raises(TypeError, match=r"group: got .* that this rank belongs to"):
        clip_loss(image, text, 1.0, group=groups[1 - rank % 2])


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
    """No graph break and the same bits, with another batch size on every rank, and where only one of them trains."""
    for name in ("clip", "global_contrastive", "crd", "gd_four_term"):
        case = BY_NAME[name]
        inputs, constants = case.make(3 + rank, 5, torch.float32)
        for trains in (True, rank == 0):
            leaves = [value.clone().requires_grad_(trains) for value in inputs.values()]

            def twice(*values: torch.Tensor, case=case, inputs=inputs, constants=constants) -> torch.Tensor:
                return 2 * case.ours(**dict(zip(inputs, values, strict=True)), **constants, group=dist.group.WORLD)

            eager = _gradients(twice(*leaves), leaves)
            compiled = _gradients(torch.compile(twice, fullgraph=True, backend="aot_eager")(*leaves), leaves)
            for ours, expected in zip(compiled, eager, strict=True):
                assert ours is expected is None or torch.equal(ours, expected), name


def _gradients(loss: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor | None]:
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    return [leaf.grad for leaf in leaves]
