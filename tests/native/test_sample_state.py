# SPDX-License-Identifier: Apache-2.0
"""Per-sample state by id: the CUDA kernels' bodies and plain torch, against float64 and against each other."""

import math

import pytest
import torch

from clipkit.engine import sample_state
from clipkit.functional.global_contrastive import _advance, log_plus

pytestmark = pytest.mark.usefixtures("on_host")
BACKENDS = ["cuda", "torch"]


def a_table(samples, columns=2, seed=0):
    return torch.randn(samples, columns, generator=torch.Generator().manual_seed(seed)) * 20 - 30


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1000,), (1000, 1), (1000, 2), (1000, 4)])
def test_rows_are_gathered_by_id(shape, backend):
    table = torch.randn(shape)
    ids = torch.randint(0, 1000, (300,))
    assert torch.equal(sample_state.gather_state(table, ids, backend=backend), table[ids])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.2, 1e-3])
@pytest.mark.parametrize("eps", [0.0, 1e-14, 1e-2])
def test_the_moving_average_equals_float64_in_the_log_domain(gamma, eps, backend):
    table, ids = a_table(500), torch.randperm(500)[:257]
    table[ids[:20]] = -torch.inf
    log_g = a_table(257, seed=1) * 2
    before = table.clone()
    log_u, smoothed = sample_state.advance_state(table, ids, log_g, gamma=gamma, eps=eps, backend=backend)
    wanted = _advance(table[ids].double(), log_g.double(), gamma)
    torch.testing.assert_close(log_u.double(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(smoothed.double(), log_plus(wanted, eps), rtol=1e-6, atol=1e-6)
    assert torch.equal(table, before)
    assert torch.equal(log_u[:20], log_g[:20])  # first visits


def test_in_fp32_the_kernel_agrees_with_the_loss():
    """What the public loss returns as the new state is what the kernel computes from the same log g."""
    table, ids, log_g = a_table(64, 1), torch.randperm(64), a_table(64, 1, seed=3)
    log_u, smoothed = sample_state.advance_state(table, ids, log_g, gamma=0.4, eps=1e-14, backend="cuda")
    loss = _advance(table[ids], log_g, 0.4)
    torch.testing.assert_close(log_u, loss, rtol=2e-7, atol=1e-6)
    torch.testing.assert_close(smoothed, log_plus(loss, 1e-14), rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinities_and_nan(backend):
    """Underflow on both sides stays -inf; γ = 1 forgets even a NaN; otherwise a NaN is not hidden."""
    table = torch.tensor([-torch.inf, 0.0, torch.nan, torch.inf])
    ids = torch.arange(4)
    log_g = torch.tensor([-torch.inf, -torch.inf, 1.0, torch.inf])
    moved, _ = sample_state.advance_state(table, ids, log_g, gamma=0.25, eps=0.0, backend=backend)
    wanted = torch.tensor([-torch.inf, math.log(0.75), torch.nan, torch.inf])
    torch.testing.assert_close(moved, wanted, equal_nan=True)
    replaced, _ = sample_state.advance_state(table, ids, log_g, gamma=1.0, eps=0.0, backend=backend)
    torch.testing.assert_close(replaced, log_g)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(5000,), (5000, 2)])
def test_of_equal_ids_the_lowest_position_is_stored(shape, backend):
    table = torch.zeros(shape)
    ids = torch.randint(0, 5000, (700,), generator=torch.Generator().manual_seed(5))
    ids[[3, 80, 699]] = 17
    ids[4:40] = 4999
    rows = torch.randn(700, *shape[1:])
    wanted = table.clone()
    for position in reversed(range(700)):
        wanted[ids[position]] = rows[position]
    sample_state.scatter_state(table, ids, rows, backend=backend)
    assert torch.equal(table, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_that_collide_in_the_hash_table_keep_their_own_rows(backend):
    """Ids a power of two apart, neighbours, and one id everywhere."""
    for ids in (torch.arange(300) * 256, torch.arange(300), torch.full((300,), 5)):
        table, rows = torch.zeros(300 * 256), torch.arange(1.0, 301.0)
        sample_state.scatter_state(table, ids, rows, backend=backend)
        expected = rows if len(ids.unique()) > 1 else torch.ones(300)
        assert torch.equal(table[ids], expected)
        assert table.count_nonzero() == len(ids.unique())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("skip, stored", [(0.0, True), (1.0, False)])
def test_a_skipped_step_stores_nothing(skip, stored, backend):
    table = a_table(10)
    before, ids = table.clone(), torch.tensor([3, 9])
    sample_state.scatter_state(table, ids, torch.ones(2, 2), skip=torch.tensor(skip), backend=backend)
    assert torch.equal(table, before) is not stored


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_ids_outside_the_table_read_as_nan_and_are_never_written(gamma, backend):
    table = torch.zeros(4)
    ids = torch.tensor([-1, 4, 2**62, 0, -(2**63), 2**63 - 1])
    outside = [True, True, True, False, True, True]
    assert sample_state.gather_state(table, ids, backend=backend).isnan().tolist() == outside
    log_u, smoothed = sample_state.advance_state(table, ids, torch.zeros(6), gamma=gamma, eps=0.0, backend=backend)
    assert log_u.isnan().tolist() == smoothed.isnan().tolist() == outside
    sample_state.scatter_state(table, ids, torch.arange(1.0, 7.0), backend=backend)
    assert table.tolist() == [4.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_with_nothing_for_the_table_leaves_it_alone(backend):
    """What a rank that holds none of the batch's samples does, and one that holds none at all."""
    table = a_table(4)
    before, ids, rows = table.clone(), torch.tensor([-1, 4, -1, 2**40]), torch.ones(4, 2)
    sample_state.scatter_state(table, ids, rows, backend=backend)
    sample_state.scatter_state(table, ids[:0], rows[:0], backend=backend)
    assert torch.equal(table, before)
    nothing = torch.zeros(0, 2)
    sample_state.scatter_state(nothing, ids, rows, backend=backend)
    assert sample_state.gather_state(nothing, ids, backend=backend).isnan().all()
    assert sample_state.gather_state(table, ids[:0], backend=backend).shape == (0, 2)


@pytest.mark.parametrize("shape", [(50,), (50, 3)])
def test_both_backends_store_the_same_bits(shape):
    """Random ids with repetitions, a third of them outside the table."""
    generator = torch.Generator().manual_seed(11)
    for _ in range(20):
        ids = torch.randint(-13, 63, (80,), generator=generator)
        table, rows = (torch.randn(count, *shape[1:], generator=generator) for count in (50, 80))
        stored = []
        for backend in BACKENDS:
            stored.append(table.clone())
            sample_state.scatter_state(stored[-1], ids, rows, backend=backend)
        assert torch.equal(*stored)


def test_rows_beyond_two_to_the_31_elements_are_addressed():
    """Offsets are 64-bit: a table of 2^31 + 8 values, of which the kernel touches the last rows (memory is not
    committed until written)."""
    samples = 2**30 + 4
    table = torch.empty(samples, 2)
    ids = torch.tensor([samples - 1, samples - 3])
    sample_state.scatter_state(table, ids, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), backend="cuda")
    assert table[-1].tolist() == [1.0, 2.0]
    assert sample_state.gather_state(table, ids, backend="cuda").tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"table": torch.zeros(4, dtype=torch.float64)}, "float64"),
        ({"ids": torch.zeros(3, dtype=torch.int32)}, "ids: got torch.int32"),
        ({"log_g": torch.zeros(2)}, r"log_g: got shape \(2,\)"),
        ({"table": torch.zeros(8)[::2]}, "contiguous"),
        ({"gamma": 0.0}, "gamma"),
        ({"eps": -1.0}, "eps"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused(change, complaint):
    arguments = {"table": torch.zeros(4), "ids": torch.zeros(3, dtype=torch.int64), "log_g": torch.zeros(3)}
    with pytest.raises((TypeError, ValueError), match=complaint):
        sample_state.advance_state(**{**arguments, "gamma": 0.5, "eps": 0.0, **change}, backend="cuda")
