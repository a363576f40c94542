# SPDX-License-Identifier: Apache-2.0
"""The global order: a permutation in every epoch, a pure function, cheap for any size."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.data import GlobalOrder
from clipkit.data.hashing import hashed, hashed_int, uniform
from clipkit.data.order import BLOCK, permute

SEEDS = st.integers(-(2**70), 2**70)


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 5 * BLOCK), windows=st.integers(1, 3), seed=SEEDS, epoch=st.integers(0, 2**40))
def test_an_epoch_has_every_id_once_whatever_the_window(count: int, windows: int, seed: int, epoch: int) -> None:
    order = GlobalOrder(count, 1, seed, window=windows * BLOCK)
    assert np.array_equal(np.sort(order.at(epoch, np.arange(count))), np.arange(count))


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 500), batch=st.integers(1, 500), seed=SEEDS, epoch=st.integers(0, 9))
def test_batches_repeat_nothing_and_drop_only_the_partial_one(count: int, batch: int, seed: int, epoch: int) -> None:
    batch = min(batch, count)
    order = GlobalOrder(count, batch, seed)
    ids = np.concatenate([order.ids(epoch, step) for step in range(order.steps_per_epoch)])
    assert len(ids) == count // batch * batch == len(np.unique(ids))
    assert ids.dtype == np.int64
    assert ids.min() >= 0
    assert ids.max() < count


def test_any_position_can_be_asked_alone() -> None:
    order = GlobalOrder(40_000, 100, 5, window=BLOCK)
    whole = order.at(3, np.arange(40_000))
    positions = np.random.default_rng(0).permutation(40_000)[:50]
    assert np.array_equal(order.at(3, positions), whole[positions])
    assert [int(order.at(3, np.array([position]))[0]) for position in positions] == whole[positions].tolist()


def test_epochs_and_seeds_differ_and_repeat() -> None:
    orders = {(seed, epoch): GlobalOrder(1000, 1000, seed).ids(epoch, 0) for seed in (0, 1) for epoch in (0, 1)}
    assert len({tuple(ids) for ids in orders.values()}) == 4
    assert np.array_equal(orders[1, 1], GlobalOrder(1000, 1000, 1).ids(1, 0))


def test_the_order_is_what_checkpoints_were_written_with() -> None:
    """A changed order breaks every resumed run: change these numbers only together with a migration."""
    assert GlobalOrder(1000, 8, 42).ids(3, 5).tolist() == GOLDEN_SMALL
    assert GlobalOrder(10**6, 8, 42, window=2 * BLOCK).ids(3, 5).tolist() == GOLDEN_WINDOWED


GOLDEN_SMALL = [697, 212, 501, 782, 652, 769, 397, 319]
GOLDEN_WINDOWED = [576717, 574851, 843447, 577688, 577859, 577459, 579529, 578675]


def test_a_thousand_million_samples_cost_no_table() -> None:
    order = GlobalOrder(10**9, 4096, 0)
    tracemalloc.start()
    ids = order.ids(7, order.steps_per_epoch - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(ids)) == 4096
    assert peak < 4 << 20


def test_a_batch_of_a_large_set_is_read_from_one_window() -> None:
    order = GlobalOrder(10**7, 512, 0, window=4 * BLOCK)
    for step in (1, 1000):
        ids = (order.ids(0, step) - order.ids(0, 0)[0]) % 10**7
        # 4 blocks of one window, or 8 where the batch straddles two; turned against the fixed grid, twice as many
        assert len(np.unique(ids // BLOCK)) <= 16


def test_every_id_is_dropped_in_some_epochs_only() -> None:
    order = GlobalOrder(20_000, 4_000 - 1, 0, window=BLOCK)
    dropped = [set(range(20_000)) - set(order.at(epoch, np.arange(5 * 3_999)).tolist()) for epoch in range(20)]
    assert all(len(ids) == 5 for ids in dropped)
    assert len(set.union(*dropped)) > 80


def test_the_first_place_is_fair() -> None:
    first = [int(GlobalOrder(10, 1, seed).ids(0, 0)[0]) for seed in range(5000)]
    counts = np.bincount(first, minlength=10)
    assert ((counts - 500) ** 2 / 500).sum() < 33.7  # chi-square, 9 degrees of freedom, p = 1e-4


@given(parts=st.lists(st.integers(-(2**80), 2**80), max_size=4), last=st.integers(0, 2**62))
def test_hashing_one_number_equals_hashing_an_array(parts: list[int], last: int) -> None:
    assert hashed_int(*parts, last) == int(hashed(*parts, np.array([last]))[0])


def test_uniform_is_in_range_and_fair() -> None:
    values = uniform(3, np.arange(100_000))
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.005


@pytest.mark.parametrize("arguments", [(0, 1), (10, 11), (10, 0)])
def test_impossible_orders_are_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"num_samples|global_batch"):
        GlobalOrder(*arguments, seed=0)


def test_a_step_beyond_the_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="step"):
        GlobalOrder(10, 5, 0).ids(0, 2)
