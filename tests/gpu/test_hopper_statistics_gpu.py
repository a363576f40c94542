# SPDX-License-Identifier: Apache-2.0
"""The hand-written Hopper statistics on a card: the simulation's cases, sizes that fill the card, equal bits twice, no
wait for the device, bounded memory."""

import pytest
import torch

from clipkit.engine.cuda_backend import hopper as backend
from tests.interpreter import kernel_cases as cases

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", autouse=True)
def hopper():
    """A card of compute capability 9.0 and a build that holds code for it."""
    native = pytest.importorskip("clipkit._native", reason="clipkit was installed without its compiled part")
    if torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("not a Hopper card")
    if native.hopper_clusters() == 0:
        pytest.skip("the compiled part holds no code for sm_90a (CLIPKIT_BUILD_CUDA=1), or no card runs it")


def features(rows, width, dtype, seed):
    return cases.unit_features(rows, width, dtype, seed).cuda()


def log_sum_exps(x, y, scale, diagonal=None):
    return backend.log_sum_exps(x, y, torch.tensor(scale, device="cuda"), diagonal=diagonal)


def exact(x, y, scale, diagonal=None):
    return cases.exact(x.cpu(), y.cpu(), scale, diagonal)


def check(result, x, y, scale, diagonal=None):
    for got, want in zip(result, exact(x, y, scale, diagonal), strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=0, atol=2 * cases.bound(x.cpu(), y.cpu(), scale))


SHAPES = [*cases.SHAPES, (129, 40, 200), (257, 513, 512), (512, 512, 1152), (385, 257, 1160), (3000, 5000, 64)]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows, columns, width", SHAPES)
def test_equal_float64(rows, columns, width, dtype):
    x, y = features(rows, width, dtype, 0), features(columns, width, dtype, 1)
    check(log_sum_exps(x, y, 100.0), x, y, 100.0)


@pytest.mark.parametrize("scale", [-100.0, 0.0, 1e4])
def test_any_scale(scale):
    x, y = features(300, 64, torch.float16, 2), features(300, 64, torch.float16, 3)
    check(log_sum_exps(x, y, scale), x, y, scale)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("diagonal", [0, 70, -66, 5000])
def test_pairs_of_the_diagonal_can_be_left_out(diagonal, dtype):
    x, y, _, _ = cases.cone_with_outliers(dtype)
    x, y = x.cuda(), y.cuda()
    check(log_sum_exps(x, y, 100.0, diagonal), x, y, 100.0, diagonal)


@pytest.mark.parametrize("dtype", HALVES)
def test_outliers_are_repaired(dtype):
    x, y, _, odd_y = cases.cone_with_outliers(dtype)
    y = y[[j for j in range(len(y)) if j not in odd_y]].cuda()
    x = x.cuda()
    check(log_sum_exps(x, y, 100.0), x, y, 100.0)
    check(log_sum_exps(y, x, 100.0), y, x, 100.0)


def test_bands_do_not_show():
    x, y = features(9000, 64, torch.bfloat16, 4), features(5000, 64, torch.bfloat16, 5)
    options = {"diagonal": 3, "clusters": backend._clusters(x), "launch": backend._launch}
    result = backend.sweep_log_sum_exps(x, y, torch.tensor(50.0, device="cuda"), workspace_bytes=1, **options)
    check(result, x, y, 50.0, 3)


@pytest.mark.parametrize("dtype", HALVES)
def test_error_is_no_larger_than_torch_has_in_fp32(dtype):
    x, y = features(3000, 512, dtype, 6), features(2900, 512, dtype, 7)
    logits = 100.0 * (x.float() @ y.float().T)
    peers = (logits.logsumexp(1), logits.logsumexp(0))
    for ours, peer, want in zip(log_sum_exps(x, y, 100.0), peers, exact(x, y, 100.0), strict=True):
        peer_error = (peer.cpu().double() - want).abs().max()
        assert (ours.cpu().double() - want).abs().max() <= 2 * peer_error + 2e-5


@pytest.mark.parametrize("width", [64, 256, 320, 512])
def test_many_runs_give_the_same_bits(width):
    """Every cluster busy for several rounds; a race between copies and multiplies would show as other bits."""
    x, y = features(20_000, width, torch.bfloat16, 8), features(20_100, width, torch.bfloat16, 9)
    first = log_sum_exps(x, y, 100.0)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, log_sum_exps(x, y, 100.0), strict=True))
    rows = slice(0, 2000)
    want = 100.0 * (x[rows].double() @ y.double().T)
    torch.testing.assert_close(first[0][rows].double(), want.logsumexp(1), rtol=0, atol=1e-4)


def test_nothing_waits_for_the_device():
    x, y = features(2560, 64, torch.float16, 10), features(2560, 64, torch.float16, 11)
    scale = torch.tensor(100.0, device="cuda")
    backend.log_sum_exps(x, y, scale, diagonal=None)
    torch.cuda.set_sync_debug_mode("error")
    try:
        backend.log_sum_exps(x, y, scale, diagonal=None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_is_bounded_by_the_workspace():
    x, y = features(65536, 64, torch.float16, 12), features(65536, 64, torch.float16, 13)
    log_sum_exps(x[:256], y[:256], 10.0)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    log_sum_exps(x, y, 10.0)
    assert torch.cuda.max_memory_allocated() - before < 192 << 20


def test_another_stream_is_used_when_it_is_current():
    x, y = features(1000, 64, torch.bfloat16, 14), features(900, 64, torch.bfloat16, 15)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = log_sum_exps(x, y, 20.0)
    stream.synchronize()
    check(result, x, y, 20.0)
