# SPDX-License-Identifier: Apache-2.0
"""The hand-written CUDA helpers on a card: against float64, against their own bodies on the host, bit-equal twice, and
without waiting for the device. Small shapes, so that compute-sanitizer can run the file:

    compute-sanitizer --tool racecheck python -m pytest tests/gpu/test_cuda_helpers_gpu.py
"""

import pytest
import torch
from torch import nn

from clipkit.engine import sample_state
from clipkit.engine.cuda_backend import merge_partials, obstacle, repair_lines
from clipkit.engine.lamb import lamb
from clipkit.optim import Lamb
from tests.native import test_lamb as lamb_cases
from tests.optim.lamb_reference import ReferenceLamb
from tests.optim.test_lamb import OPTIONS, RULES, SHAPES, give_gradients, parameters

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _built(request):
    reason = obstacle(torch.device("cuda"), torch.float32)
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def on_host(monkeypatch):
    monkeypatch.setenv("CLIPKIT_CUDA_ON_HOST", "1")


@pytest.fixture
def no_waiting():
    """From the first use on, any wait of the host for the device is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def to_card(problem):
    """A LAMB problem with all its tensors on the card."""

    def move(value):
        if isinstance(value, torch.Tensor):
            return value.cuda()
        return (
            [each.cuda() for each in value] if isinstance(value, list) and isinstance(value[0], torch.Tensor) else value
        )

    return problem._replace(**{name: move(value) for name, value in problem._asdict().items()})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, columns, width", [(130, 257, 32), (300, 5000, 96), (65, 63, 640)])
@pytest.mark.parametrize("diagonal", [None, 0, -3])
def test_merge_and_repair_equal_float64(rows, columns, width, dtype, diagonal, no_waiting):
    """Tile-scalar offsets at scale 200, with rows that they flush."""
    x, y = (
        torch.nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(count)), dim=1)
        for count in (rows, columns)
    )
    x[7], x[60] = -y.mean(0), -y[0]
    x, y, scale = x.to(dtype).cuda(), y.to(dtype).cuda(), torch.full((1,), 200.0, device="cuda")
    logits = 200.0 * (x.double() @ y.double().T)
    if diagonal is not None:
        logits.diagonal(diagonal).fill_(-torch.inf)
    tiles = logits.float().split(64, 1)
    offsets = torch.stack([tile.max() for tile in tiles])
    sums = torch.stack([(tile - tile.max()).exp().sum(1) for tile in tiles])
    no_waiting()
    log_sum, suspects = merge_partials(sums, offsets, line_block=rows, offset_strides=(0, 1))
    repair_lines(x, y, scale, log_sum, suspects, diagonal=diagonal)
    torch.cuda.set_sync_debug_mode("default")
    count = int(suspects.listed)
    assert sorted(suspects.lines[:count].tolist()) == suspects.flags.nonzero().flatten().tolist()
    torch.testing.assert_close(log_sum.double(), logits.logsumexp(1), rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", [(5000,), (5000, 2), (5000, 4)])
@pytest.mark.parametrize("gamma, eps", [(1.0, 0.0), (0.3, 1e-14)])
def test_state_equals_the_host_and_does_not_wait(shape, gamma, eps, no_waiting, on_host):
    table = torch.randn(shape) * 20
    table[::7] = -torch.inf
    ids = torch.randint(0, 5000, (3000,))
    ids[5:900] = 17  # many threads claim one slot
    log_g = torch.randn(3000, *shape[1:])
    on_card = [tensor.cuda() for tensor in (table, ids, log_g)]
    no_waiting()
    for each in ((table, ids, log_g), on_card):
        before = sample_state.gather_state(*each[:2], backend="cuda")
        log_u, smoothed = sample_state.advance_state(*each, gamma=gamma, eps=eps, backend="cuda")
        sample_state.scatter_state(*each[:2], log_u, backend="cuda")
        if each is not on_card:
            wanted = (before, log_u, smoothed, table)
    torch.cuda.set_sync_debug_mode("default")
    for got, want in zip((before, log_u, smoothed, on_card[0]), wanted, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-6, atol=1e-6)


def test_equal_ids_store_the_lowest_position_every_time():
    ids, rows = torch.randint(0, 50, (20_000,)), torch.arange(20_000.0)
    wanted = torch.full((50,), -1.0)
    sample_state.scatter_state(wanted, ids, rows, backend="torch")
    for _ in range(5):
        table = torch.full((50,), -1.0, device="cuda")
        sample_state.scatter_state(table, ids.cuda(), rows.cuda(), backend="cuda")
        assert torch.equal(table.cpu(), wanted)


def test_a_table_beyond_two_to_the_31_values():
    samples = 2**30 + 4
    if torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("needs 9 GiB of memory on the card")
    table = torch.zeros(samples, 2, device="cuda")
    ids = torch.tensor([samples - 1, 0, samples], device="cuda")
    sample_state.scatter_state(table, ids, torch.tensor([[1.0, 2.0]] * 3, device="cuda"), backend="cuda")
    assert table[-1].tolist() == table[0].tolist() == [1.0, 2.0]
    assert sample_state.gather_state(table, ids, backend="cuda").isnan().any(dim=1).tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trust", RULES)
def test_lamb_equals_float64(trust, dtype):
    tensors = [nn.Parameter(tensor.detach().cuda()) for tensor in parameters(SHAPES, dtype)]
    options = {**OPTIONS, "weight_decay": 0.05, "trust": trust}
    optimizer, reference = Lamb(tensors, **options, backend="cuda"), ReferenceLamb(tensors, **options)
    for step in range(5):
        give_gradients(twins := parameters(SHAPES, dtype), step)
        for tensor, twin in zip(tensors, twins, strict=True):
            tensor.grad = twin.grad.cuda()
        reference.step([tensor.grad for tensor in tensors])
        optimizer.step()
    for tensor, wanted in zip(tensors, reference.weights, strict=True):
        master = optimizer.state[tensor].get("master", tensor.detach())
        torch.testing.assert_close(master.double(), wanted, rtol=2e-5, atol=2e-6)
        assert torch.equal(tensor.data, master.to(dtype))


def test_lamb_gives_the_same_bits_twice_and_nearly_the_hosts(on_host):
    results = []
    for _ in range(2):
        problem = to_card(lamb_cases.tensors([1, 255, 16385, 150_000]))
        norms, apply = lamb(problem, backend="cuda")
        apply(norms)
        results.append([norms, *problem.weights, *problem.means, *problem.variances])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    host = lamb_cases.tensors([1, 255, 16385, 150_000])
    norms, apply = lamb(host, backend="cuda")
    apply(norms)
    for ours, theirs in zip(results[0], [norms, *host.weights, *host.means, *host.variances], strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overflowed", [False, True])
def test_lamb_skips_on_the_card_and_does_not_wait(overflowed, no_waiting):
    tensors = [nn.Parameter(torch.randn(shape, device="cuda")) for shape in ((300, 70), (9,))]
    before = [tensor.detach().clone() for tensor in tensors]
    optimizer = Lamb(tensors, **OPTIONS, weight_decay=0.05, backend="cuda")
    for attempt in range(2):
        for tensor in tensors:
            tensor.grad = torch.full_like(tensor, torch.inf if overflowed else 0.5)
        optimizer.found_inf = torch.full((), float(overflowed), device="cuda")
        optimizer.grad_scale = torch.full((), 8.0, device="cuda")
        if attempt:  # the first step allocates state, pinned memory and the plan
            no_waiting()
        optimizer.step()
    torch.cuda.set_sync_debug_mode("default")
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor, old) is overflowed
        assert optimizer.state[tensor]["step"].item() == (0 if overflowed else 2)


def test_launches_follow_the_tensors_to_another_device():
    """The compiled part has a CUDA runtime of its own: it must take the device that torch has made current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two cards")
    table = torch.arange(10.0, device="cuda:1")
    found = sample_state.gather_state(table, torch.tensor([7, 0], device="cuda:1"), backend="cuda")
    assert found.tolist() == [7.0, 0.0]
    assert torch.cuda.current_device() == 0
