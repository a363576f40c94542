# SPDX-License-Identifier: Apache-2.0
"""The table of samples is a dictionary from id to row, bit for bit, wherever its rows live."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bench.record import peak_extra_mib
from clipkit.parallel import sample_table
from clipkit.parallel.sample_table import SampleTable
from clipkit.train import dcp
from tests.parallel.ranks import run_on_ranks

INITIAL = (-math.inf, 0.07, -0.0)
SAMPLES = 23  # over 4 ranks: 6, 6, 6, 5
SPECIAL = (-math.inf, math.inf, -0.0, math.nan, 1e-45, 3.4e38)


class Step(NamedTuple):
    """One global batch: who has how many of the ids [N], the rows [N, columns], and whether the step counts."""

    sizes: list[int]
    ids: Tensor
    rows: Tensor
    skip: Tensor | None


def steps(world_size: int, samples: int = SAMPLES, count: int = 12) -> Iterator[Step]:
    """The same batches for every world size, otherwise divided: repeated ids, ranks with nothing, batches of none."""
    data, division = (torch.Generator().manual_seed(seed) for seed in (3, 4))
    for number in range(count):
        size = [17, 0, 1, 40][number % 4]
        ids = torch.randint(0, samples, (size,), generator=data)
        rows = torch.randn(size, len(INITIAL), generator=data)
        special = torch.randint(0, 3 * len(SPECIAL), rows.shape, generator=data)
        rows = torch.where(special < len(SPECIAL), torch.tensor(SPECIAL)[special % len(SPECIAL)], rows)
        cuts = torch.randint(0, size + 1, (world_size - 1,), generator=division).sort().values.tolist()
        sizes = [stop - start for start, stop in zip([0, *cuts], [*cuts, size], strict=True)]
        skip = [None, torch.tensor(0.0), torch.tensor(1.0), torch.tensor(math.nan), torch.tensor(False)][number % 5]
        yield Step(sizes, ids, rows, skip)


def bits(rows: Tensor) -> list[list[int]]:
    return rows.contiguous().view(torch.int32).tolist()


def stored(step: Step) -> bool:
    return step.skip is None or bool(step.skip == 0)


def check_against_a_dictionary(placement: str, samples: int, group: dist.ProcessGroup | None = None) -> None:
    world_size, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    table = SampleTable(samples, INITIAL, placement=placement, group=group)
    assert table.placement == ("replicated" if world_size == 1 else placement)
    truth = {sample: bits(torch.tensor([INITIAL]))[0] for sample in range(samples)}
    for step in steps(world_size, samples):
        mine = step.ids.split(step.sizes)[rank]
        reading = table.begin_read(mine)
        assert bits(reading.wait()) == [truth[int(sample)] for sample in mine]
        assert reading.wait() is reading.wait()
        table.write(step.ids, step.rows, skip=step.skip)
        if stored(step):
            for sample, row in reversed(list(zip(step.ids.tolist(), bits(step.rows), strict=True))):
                truth[sample] = row
    everything = torch.arange(samples)
    assert bits(table.read(everything[rank:] if rank < samples else everything[:0])) == list(truth.values())[rank:]
    held = table.held(everything)
    first = table._start
    own = slice(first, first + table.bytes // 4 // len(INITIAL))
    assert bits(held[own]) == list(truth.values())[own]
    assert held[:first].isnan().all()
    assert held[own.stop :].isnan().all()


def check_on_groups(rank: int) -> None:
    """Groups of one, two and four ranks, one of which does not begin with rank 0."""
    for ranks in ([2], [1, 3], [0, 1, 2, 3]):
        group = dist.new_group(ranks)
        if rank in ranks:
            for placement in ("replicated", "sharded"):
                for samples in (SAMPLES, 5, 1):  # of 5 on 4 ranks: 2, 2, 1 and none
                    check_against_a_dictionary(placement, samples, group)
            check_that_mistakes_are_told(group)
            check_the_choice_of_a_placement(group)
    check_a_group_that_does_not_carry_the_cpu(rank)


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_on_one_rank_it_is_a_dictionary(placement):
    check_against_a_dictionary(placement, SAMPLES)


def test_on_any_number_of_ranks_it_is_the_same_dictionary():
    run_on_ranks(4, check_on_groups)


def check_that_mistakes_are_told(group: dist.ProcessGroup) -> None:
    """A wrong id on one rank raises on every rank, and the next read works."""
    world_size, rank = dist.get_world_size(group), dist.get_rank(group)
    table = SampleTable(SAMPLES, INITIAL, placement="sharded", group=group)
    guilty = world_size - 1
    wrong = torch.tensor([0, SAMPLES if rank == guilty else 1])
    with pytest.raises(ValueError) as caught:
        table.read(wrong)
    named = str(caught.value).startswith(f"sample_ids: got {SAMPLES} at position 1; want 0 <= id < {SAMPLES}")
    assert named == (rank == guilty), caught.value
    assert table.read(torch.tensor([rank])).shape == (1, len(INITIAL))
    if world_size > 1:
        other = SampleTable(SAMPLES + (rank == 0), INITIAL, placement="sharded", group=group)
        with pytest.raises(ValueError, match="other settings of it, on rank"):
            other.read(torch.tensor([0]))
    before = bits(table.held(torch.arange(SAMPLES)))
    with pytest.raises(ValueError, match="sample_ids: got -1 at position 1"):
        table.write(torch.tensor([0, -1]), torch.zeros(2, len(INITIAL)))
    assert bits(table.held(torch.arange(SAMPLES))) == before


def check_the_choice_of_a_placement(group: dist.ProcessGroup) -> None:
    """Both sides of the limit."""
    limit, sample_table.REPLICATED_BYTES = sample_table.REPLICATED_BYTES, 4 * len(INITIAL) * 10
    try:
        small, large = (SampleTable(samples, INITIAL, group=group) for samples in (10, 11))
    finally:
        sample_table.REPLICATED_BYTES = limit
    assert small.placement == "replicated"
    assert small.bytes == 10 * 4 * len(INITIAL)
    world_size, rank = dist.get_world_size(group), dist.get_rank(group)
    assert large.placement == ("replicated" if world_size == 1 else "sharded")
    block = math.ceil(11 / world_size)
    assert large.bytes == max(0, min(block, 11 - rank * block)) * 4 * len(INITIAL)


def test_alone_a_table_of_any_size_is_whole():
    table = SampleTable(7, INITIAL, placement="sharded")
    assert table.placement == "replicated"
    assert table.bytes == 7 * 4 * len(INITIAL)


def check_a_group_that_does_not_carry_the_cpu(rank: int) -> None:
    """What NCCL alone is on a machine with cards: the accelerator is taken, and without one the reason is told."""
    group = dist.new_group(backend="cuda:gloo")
    with pytest.raises(ValueError, match="device: got cpu, for which the process group has no backend"):
        SampleTable(SAMPLES, INITIAL, placement="sharded", group=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
        patch.setattr(sample_table, "_check_backend", lambda group, device: None)
        assert SampleTable(SAMPLES, INITIAL, placement="sharded", group=group).device.type == "meta"
        assert SampleTable(SAMPLES, INITIAL, placement="sharded", group=dist.group.WORLD).device.type == "cpu"
        assert SampleTable(SAMPLES, INITIAL, placement="replicated", group=group).device.type == "cpu"


def test_gradients_end_at_the_table():
    table = SampleTable(4, [0.0])
    table.write(torch.tensor([1]), torch.ones(1, 1, requires_grad=True) * 2)
    assert not table.read(torch.tensor([1])).requires_grad


def test_rows_of_another_precision_are_stored_as_fp32():
    table = SampleTable(4, [0.0])
    table.write(torch.tensor([1]), torch.full((1, 1), 0.1, dtype=torch.float64))
    assert table.read(torch.tensor([1])).item() == torch.tensor(0.1).item()


def test_nothing_depends_on_values_that_a_device_would_have_to_be_waited_for():
    """A meta tensor has no values: whoever looks at one raises."""
    table = SampleTable(10, INITIAL, device="meta")
    ids = torch.zeros(6, dtype=torch.int64, device="meta")
    table.check(ids)
    table._start = 3  # as on a rank that owns a block in the middle
    assert table.held(ids).shape == table.read(ids).shape == (6, 3)
    table.write(ids, torch.zeros(6, 3, device="meta"), skip=torch.zeros((), device="meta"))


def test_ids_that_are_not_looked_at_read_as_nan_and_are_never_written(monkeypatch):
    """What happens on a GPU, where ids are not checked."""
    table = SampleTable(5, [1.0])
    monkeypatch.setattr(table, "check", lambda ids: None)
    ids = torch.tensor([5, 2, -1])
    table.write(ids, torch.tensor([[7.0], [8.0], [9.0]]))
    assert table.read(torch.arange(5)).flatten().tolist() == [1.0, 1.0, 8.0, 1.0, 1.0]
    assert table.read(ids).isnan().flatten().tolist() == [True, False, True]


@pytest.mark.parametrize(
    "ids, complaint",
    [
        ([0, 1], r"sample_ids: got a list; want an int64 tensor"),
        (torch.tensor([0, 1], dtype=torch.int32), r"sample_ids: got torch.int32 \[2\] on cpu; want an int64 tensor"),
        (torch.tensor([[0, 1]]), r"sample_ids: got torch.int64 \[1, 2\] on cpu; want one dimension"),
        (torch.tensor([0, 6]), r"sample_ids: got 6 at position 1; want 0 <= id < 6, .*; number the samples"),
        (torch.tensor([0, 3, -1, 9]), r"sample_ids: got -1 at position 2; want 0 <= id < 6"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), r"sample_ids: got .* on meta; want ids on cpu"),
    ],
)
@pytest.mark.parametrize("method", ["read", "begin_read", "held", "write"])
def test_wrong_ids_are_refused_before_anything_is_stored(ids, complaint, method):
    table = SampleTable(6, [2.0])
    arguments = (ids, torch.zeros(len(ids), 1)) if method == "write" else (ids,)
    with pytest.raises((TypeError, ValueError), match=complaint):
        getattr(table, method)(*arguments)
    assert table.read(torch.arange(6)).eq(2.0).all()


@pytest.mark.parametrize(
    "rows, skip, complaint",
    [
        (torch.zeros(2, 2), None, r"rows: got torch.float32 \[2, 2\] on cpu; want floating \[2, 1\] on cpu"),
        (torch.zeros(1, 1), None, "rows: got"),
        (torch.zeros(2, 1, dtype=torch.int64), None, "rows: got torch.int64"),
        (torch.zeros(2, 1, device="meta"), None, "rows: got .* on meta"),
        (torch.zeros(2, 1), torch.zeros(2), "skip: got .*; want one number on cpu"),
        (torch.zeros(2, 1), torch.zeros((), device="meta"), "skip: got .* on meta"),
    ],
)
def test_wrong_rows_are_refused(rows, skip, complaint):
    with pytest.raises(ValueError, match=complaint):
        SampleTable(6, [2.0]).write(torch.tensor([0, 1]), rows, skip=skip)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ((0, [0.0]), "num_samples: got 0; want at least 1"),
        ((10.0, [0.0]), "num_samples: got a float"),
        ((10, []), "initial: got nothing"),
        ((10, [0.0], "everywhere"), "placement: got 'everywhere'"),
    ],
)
def test_wrong_settings_are_refused(arguments, complaint):
    with pytest.raises((TypeError, ValueError), match=complaint):
        SampleTable(*arguments[:2], placement=arguments[2] if len(arguments) > 2 else "auto")


# Checkpoints: what any number of ranks wrote with one placement, any number reads with the other.


def filled(samples: int) -> Tensor:
    """Rows that tell which they are, with every special number among them."""
    rows = torch.arange(samples * len(INITIAL), dtype=torch.float32).view(samples, len(INITIAL)) * 0.37
    rows.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL)[: rows.numel()]
    return rows


def tensors_of(table: SampleTable) -> dict[str, Tensor]:
    return {f"table.{name}": each for name, each in table.tensors().items()}


def save(folder: Path, placement: str, group: dist.ProcessGroup | None) -> None:
    for samples in (SAMPLES, 5):
        table = SampleTable(samples, INITIAL, placement=placement, group=group)
        table.write(torch.arange(samples), filled(samples))
        dcp.save_tensors(tensors_of(table), folder / str(samples), group)


def load(folder: Path, placement: str, group: dist.ProcessGroup | None) -> None:
    for samples in (SAMPLES, 5):
        table = SampleTable(samples, INITIAL, placement=placement, group=group)
        dcp.load_tensors(tensors_of(table), folder / str(samples), group)
        assert bits(table.read(torch.arange(samples))) == bits(filled(samples))
        table.write(torch.tensor([0]), torch.full((1, len(INITIAL)), 5.0))  # what was loaded is the table
        assert table.read(torch.tensor([0])).eq(5.0).all()


def check_checkpoints(rank: int, folder: Path) -> None:
    two = dist.new_group([0, 1])
    everybody = dist.group.WORLD
    ways = {"one": ("replicated", None), "two": ("sharded", two), "two whole": ("replicated", two)}
    ways["four"] = ("sharded", everybody)
    for name, (placement, group) in ways.items():
        if group is everybody or rank < 2 - (group is None):
            save(folder / name, placement, group)
    dist.barrier()
    for name in ways:
        for placement, group in ways.values():
            if group is everybody or rank < 2 - (group is None):
                load(folder / name, placement, group)


def test_a_checkpoint_fits_any_world_size_and_placement(tmp_path):
    run_on_ranks(4, check_checkpoints, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
def test_to_write_a_checkpoint_takes_no_second_table(tmp_path):
    tensors = tensors_of(SampleTable(1 << 22, [0.07] * 8))  # 128 MiB
    dcp.save_tensors(tensors, tmp_path / "first", None)  # what the first use allocates for good is not the table's
    assert peak_extra_mib(lambda: dcp.save_tensors(tensors, tmp_path / "second", None)) < 32
