# SPDX-License-Identifier: Apache-2.0
"""FastCLIP over ranks, with unequal and empty shares, its estimates whole or in blocks, is FastCLIP in one process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from clipkit import global_contrastive_loss
from clipkit.losses import FastCLIPLoss
from tests.parallel.ranks import run_on_ranks
from tests.reference.naive import unit

SHARES = {2: [(5, 5), (7, 3), (0, 10)], 4: [(3, 2, 3, 2), (1, 6, 0, 3)]}
VERSIONS = ("v0", "v1", "v2", "v3", "sogclr", "isogclr")
SAMPLES, ROWS, WIDTH = 31, 10, 6
IDS = torch.tensor([4, 30, 0, 17, 9, 22, 1, 13, 28, 6])
REPEATED = torch.tensor([4, 30, 0, 17, 4, 22, 30, 4, 28, 0])  # 4, 30 and 0 on more than one rank of any division


@dataclass
class Outcome:
    """Two steps: losses, gradients of this rank's features and of the scale, and the rows that this rank holds."""

    losses: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)
    tables: list[Tensor] = field(default_factory=list)


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return unit(ROWS, WIDTH, 1, dtype), unit(ROWS, WIDTH, 2, dtype)


def some_past(columns: int) -> Tensor:
    """Rows as they may be in the middle of a run; every fifth sample was never visited."""
    generator = torch.Generator().manual_seed(8)
    rows = torch.randn(SAMPLES, columns, generator=generator)
    rows[:, 2:4] = 0.02 + 0.05 * rows[:, 2:4].sigmoid()
    rows[:, 6:] = rows[:, 6:].square()
    rows[::5, :2] = -math.inf
    return rows


def whole_table(loss: FastCLIPLoss) -> Tensor:
    """The rows that this rank holds, NaN elsewhere."""
    return loss.table().held(torch.arange(SAMPLES))


def two_steps(
    version: str,
    group: dist.ProcessGroup,
    mine: slice,
    dtype: torch.dtype,
    *,
    ids: Tensor = IDS,
    begun: bool = False,
    frozen: Sequence[str] = (),
    skip: Tensor | None = None,
    features: tuple[Tensor, Tensor] | None = None,
    **options: Any,
) -> Outcome:
    """A later epoch's two steps on the same samples; the second one reads what the first has stored."""
    loss = FastCLIPLoss(SAMPLES, version, gamma=0.3, decay_epochs=4, eps=1e-8, rho=1.5, group=group, **options)
    loss.set_epoch(2)
    table = loss.table()
    everything = torch.arange(SAMPLES)
    table.write(everything, some_past(table.columns))
    found = Outcome()
    for _ in range(2):
        image, text = (tower[mine].clone() for tower in features or batch(dtype))
        image.requires_grad_("image" not in frozen)
        text.requires_grad_("text" not in frozen)
        scale = torch.tensor(9.0, dtype=dtype).requires_grad_()
        own = ids[mine]
        if begun:
            loss.begin(own)
            loss.image_ready(image)
        value = loss(image, text, scale, own)
        value.backward()
        loss.commit(skip)
        world_size = dist.get_world_size(group)
        nothing = torch.zeros(image.shape, dtype=dtype)
        found.losses.append(value.detach())
        found.features += [nothing if leaf.grad is None else leaf.grad / world_size for leaf in (image, text)]
        found.scales.append(torch.zeros(()) if scale.grad is None else scale.grad)
        found.tables.append(whole_table(loss))
    return found


def assert_same_bits(found: Outcome, wanted: Outcome, where: str) -> None:
    for name in ("losses", "features", "scales"):
        for ours, theirs in zip(getattr(found, name), getattr(wanted, name), strict=True):
            assert torch.equal(ours, theirs), f"{where}: {name}"
    for ours, theirs in zip(found.tables, wanted.tables, strict=True):
        held = ~ours[:, 0].isnan() & ~theirs[:, 0].isnan()
        assert torch.equal(ours[held], theirs[held]), f"{where}: table"


def assert_equal_one_process(found: Outcome, alone: Outcome, mine: slice, dtype: torch.dtype, where: str) -> None:
    """To rounding: the table rounds to fp32, and may on the other side, which the second step then starts from."""
    first = 1e-12 if dtype == torch.float64 else 1e-5
    for step, tolerance in enumerate((first, max(first, 1e-6))):
        pairs = [(found.losses[step], alone.losses[step]), (found.scales[step], alone.scales[step])]
        pairs += [(found.features[2 * step + n], alone.features[2 * step + n][mine]) for n in range(2)]
        for ours, theirs in pairs:
            largest = float(theirs.abs().max()) if theirs.numel() else 0.0
            torch.testing.assert_close(
                ours,
                theirs,
                rtol=tolerance,
                atol=tolerance * largest,
                msg=lambda m, step=step: f"{where}, step {step}: {m}",
            )
        held = ~found.tables[step][:, 0].isnan()
        rounding = 3e-7 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(
            found.tables[step][held],
            alone.tables[step][held],
            rtol=rounding,
            atol=rounding,
            msg=lambda m, step=step: f"{where}, table after step {step}: {m}",
        )


def myself() -> dist.ProcessGroup:
    """A group of this rank alone."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    return groups[dist.get_rank()]


def my_rows(shares: Sequence[int], rank: int) -> slice:
    start = sum(shares[:rank])
    return slice(start, start + shares[rank])


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_over_ranks_it_is_what_it_is_in_one_process(world_size):
    """Starting processes costs seconds, so all properties of a number of ranks share them."""
    run_on_ranks(world_size, _properties)


def test_a_group_of_one_rank_is_one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for version in VERSIONS:
            world = two_steps(version, dist.group.WORLD, slice(None), torch.float64)
            sharded = two_steps(version, myself(), slice(None), torch.float64, placement="sharded", begun=True)
            assert_same_bits(world, sharded, version)
    finally:
        dist.destroy_process_group()


def _properties(rank: int) -> None:
    group = myself()
    shares = SHARES[dist.get_world_size()]
    _every_version_equals_one_process(rank, group, shares)
    mine = my_rows(shares[1], rank)
    for version in ("v2", "v3") if len(shares) == 3 else ("v2",):
        _placements_and_early_starts_give_the_same_bits(version, mine)
        _keys_travel_in_bf16(version, mine)
        _the_first_of_equal_ids_is_stored(version, mine, group)
        _a_frozen_tower_on_one_rank(version, rank, mine)
        _a_skipped_step_leaves_the_table(version, mine)
        for placement in ("replicated", "sharded"):
            for begun in (False, True):
                _a_bad_id_on_one_rank_raises_on_all(version, rank, placement, begun)
    _a_state_dict_fits_either_placement(mine)
    _ddp(rank, mine, group)


def _every_version_equals_one_process(rank: int, group: dist.ProcessGroup, shares: list[tuple[int, ...]]) -> None:
    # sogclr and isogclr are v1 and v2 at another γ: two ranks are enough for these.
    for version in VERSIONS if len(shares) == 3 else VERSIONS[:4]:
        for dtype in (torch.float64, torch.float32):
            alone = two_steps(version, group, slice(None), dtype)
            for division in shares:
                mine = my_rows(division, rank)
                found = two_steps(version, dist.group.WORLD, mine, dtype, placement="sharded")
                where = f"{version} {dtype} {division} rank {rank}"
                assert_equal_one_process(found, alone, mine, dtype, where)
    reference = {"tau_grad": "reference"}
    mine, dtype = my_rows(shares[0], rank), torch.float64
    alone = two_steps("v3", group, slice(None), dtype, **reference)
    found = two_steps("v3", dist.group.WORLD, mine, dtype, **reference)
    assert_equal_one_process(found, alone, mine, dtype, "reference")
    reference = {"tau_weight": "reference", "tau_adam": "reference"}
    alone = two_steps("v2", group, slice(None), dtype, **reference)
    found = two_steps("v2", dist.group.WORLD, mine, dtype, **reference)
    assert_equal_one_process(found, alone, mine, dtype, "reference")


def _placements_and_early_starts_give_the_same_bits(version: str, mine: slice) -> None:
    world = dist.group.WORLD
    plain = two_steps(version, world, mine, torch.float32, placement="replicated")
    assert not plain.tables[1].isnan().any()
    for placement in ("replicated", "sharded"):
        for begun in (False, True):
            found = two_steps(version, world, mine, torch.float32, placement=placement, begun=begun)
            assert_same_bits(found, plain, f"{version} {placement}, begun {begun}")
            held = (~found.tables[1][:, 0].isnan()).sum()
            block = math.ceil(SAMPLES / dist.get_world_size())
            assert held == SAMPLES if placement == "replicated" else held <= block


def _keys_travel_in_bf16(version: str, mine: slice) -> None:
    """Values that bf16 holds arrive as they are; others arrive rounded, and only the keys."""
    world, bf16 = dist.group.WORLD, torch.bfloat16
    exact = tuple(tower.to(bf16).float() for tower in batch(torch.float32))
    plain = two_steps(version, world, mine, torch.float32, features=exact)
    assert_same_bits(two_steps(version, world, mine, torch.float32, features=exact, payload=bf16), plain, version)
    plain = two_steps(version, world, mine, torch.float32)
    for begun in (False, True):
        found = two_steps(version, world, mine, torch.float32, payload=bf16, begun=begun)
        assert not torch.equal(found.losses[0], plain.losses[0])
        torch.testing.assert_close(found.losses[0], plain.losses[0], rtol=1e-2, atol=1e-2)
        for ours, theirs in zip(found.features[:2], plain.features[:2], strict=True):
            if len(theirs):
                assert (ours - theirs).norm() <= 0.05 * theirs.norm()


def _the_first_of_equal_ids_is_stored(version: str, mine: slice, group: dist.ProcessGroup) -> None:
    alone = two_steps(version, group, slice(None), torch.float64, ids=REPEATED)
    for placement in ("replicated", "sharded"):
        found = two_steps(version, dist.group.WORLD, mine, torch.float64, ids=REPEATED, placement=placement)
        assert_equal_one_process(found, alone, mine, torch.float64, f"{version} repeated")
    if version == "v3":  # by definition
        past = some_past(2)
        image, text = batch(torch.float64)
        gamma = 0.3 + 0.7 * 0.5
        _, *new = global_contrastive_loss(image, text, 9.0, *past[REPEATED].double().unbind(1), gamma=gamma, eps=1e-8)
        first = {int(sample): place for place, sample in reversed(list(enumerate(REPEATED)))}
        wanted = torch.stack(new, dim=1).float()
        for sample, place in first.items():
            torch.testing.assert_close(alone.tables[0][sample], wanted[place])
        untouched = sorted(set(range(SAMPLES)) - set(first))
        assert torch.equal(alone.tables[0][untouched], past[untouched])


def _a_frozen_tower_on_one_rank(version: str, rank: int, mine: slice) -> None:
    world = dist.group.WORLD
    plain = two_steps(version, world, mine, torch.float64)
    for tower in ("image", "text"):
        found = two_steps(version, world, mine, torch.float64, frozen=[tower] if rank == 1 else [])
        for place, gradient in enumerate(found.features):
            if rank == 1 and tower == ("image", "text")[place % 2]:
                assert not gradient.any()
            else:
                torch.testing.assert_close(gradient, plain.features[place], rtol=1e-10, atol=1e-14)
    both = two_steps(version, world, mine, torch.float64, frozen=["image", "text"] if rank == 1 else [])
    torch.testing.assert_close(both.losses[0], plain.losses[0], rtol=1e-12, atol=0)


def _a_skipped_step_leaves_the_table(version: str, mine: slice) -> None:
    for placement in ("replicated", "sharded"):
        found = two_steps(version, dist.group.WORLD, mine, torch.float32, placement=placement, skip=torch.tensor(1.0))
        past = some_past(found.tables[0].shape[1])
        for table in found.tables:
            held = ~table[:, 0].isnan()
            assert held.any()
            assert torch.equal(table[held], past[held])
        assert torch.equal(*found.losses), "nothing was stored, so the second step is the first"


def _a_bad_id_on_one_rank_raises_on_all(version: str, rank: int, placement: str, begun: bool) -> None:
    """None is left waiting, nothing is stored, and the next step works."""
    loss = FastCLIPLoss(SAMPLES, version, rho=0.5, placement=placement)
    image, text = (tower[:3].clone().requires_grad_() for tower in batch(torch.float32))
    before = whole_table(loss)
    for wrong in (SAMPLES, -1):
        ids = IDS[:3].clone()
        if rank == 1:
            ids[2] = wrong
        with pytest.raises(ValueError) as caught:  # noqa: PT012 - either may be the one that raises
            if begun:
                loss.begin(ids)
            loss(image, text, 9.0, ids)
        start = f"sample_ids: got {wrong} at position 2" if rank == 1 else "group: got arguments that were refused on"
        assert str(caught.value).startswith(start), caught.value
        loss.commit()
        assert torch.equal(whole_table(loss).nan_to_num(), before.nan_to_num())
    loss(image, text, 9.0, torch.arange(3) + 3 * rank).backward()


def _a_state_dict_fits_either_placement(mine: slice) -> None:
    image, text = batch(torch.float32)
    losses = {}
    for placement in ("replicated", "sharded"):
        loss = losses[placement] = FastCLIPLoss(SAMPLES, "v2", rho=1.0, placement=placement)
        loss(image[mine].requires_grad_(), text[mine], 9.0, IDS[mine]).backward()
        loss.commit()
    rows = whole_table(losses["replicated"])
    assert rows[IDS].isfinite().all()
    for placement in losses:
        for saved in losses.values():
            fresh = FastCLIPLoss(SAMPLES, "v2", rho=1.0, placement=placement)
            fresh.load_state_dict(saved.state_dict())
            assert torch.equal(fresh.table().read(torch.arange(SAMPLES)), rows), placement


class Towers(torch.nn.Module):
    """Two linear towers and a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.image = torch.nn.Parameter(torch.randn(9, WIDTH, generator=generator, dtype=torch.float64))
        self.text = torch.nn.Parameter(torch.randn(4, WIDTH, generator=generator, dtype=torch.float64))
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised features, and the multiplier."""
        image, text = (
            torch.nn.functional.normalize(rows @ weight, dim=1)
            for rows, weight in ((pixels, self.image), (tokens, self.text))
        )
        return image, text, self.logit_scale.exp()


def _ddp(rank: int, mine: slice, group: dist.ProcessGroup) -> None:
    """Every parameter's gradient under DDP, also where the scale has none (v1, v2): DDP does not complain."""
    pixels, tokens = unit(ROWS, 9, 0), unit(ROWS, 4, 1)
    for version in VERSIONS:
        alone, wrapped = Towers(), torch.nn.parallel.DistributedDataParallel(Towers())
        FastCLIPLoss(SAMPLES, version, rho=1.0, group=group)(*alone(pixels, tokens), IDS).backward()
        loss = FastCLIPLoss(SAMPLES, version, rho=1.0)
        for _ in range(2):  # DDP complains of parameters without a gradient in the second step
            wrapped.zero_grad()
            loss(*wrapped(pixels[mine], tokens[mine]), IDS[mine]).backward()
        for name, parameter in alone.named_parameters():
            found = wrapped.module.get_parameter(name).grad
            torch.testing.assert_close(
                found, parameter.grad, rtol=1e-10, atol=1e-13, msg=lambda m, n=name, v=version: f"{v} {n}: {m}"
            )
