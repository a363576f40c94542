# SPDX-License-Identifier: Apache-2.0
"""The forward statistics on a card: the interpreter's cases, bf16 as well, sizes that fill it, equal bits twice."""

import pytest
import torch

from tests.interpreter import kernel_cases as cases

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def row_col_lse():
    pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")
    from clipkit.kernels.row_col_lse import row_col_lse as function

    return function


def check(result, x, y, scale, diagonal=None):
    for got, want in zip(result, cases.exact(x.cpu(), y.cpu(), scale, diagonal), strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=0, atol=2 * cases.bound(x.cpu(), y.cpu(), scale))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, columns, width", [*cases.SHAPES, (257, 513, 512), (512, 512, 1152)])
def test_statistics_equal_float64(row_col_lse, rows, columns, width, dtype):
    x, y = cases.unit_features(rows, width, dtype, 0).cuda(), cases.unit_features(columns, width, dtype, 1).cuda()
    check(row_col_lse(x, y, 100.0), x, y, 100.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_outliers_at_scale_100_are_repaired(row_col_lse, dtype):
    x, y, _, odd_y = cases.cone_with_outliers(dtype)
    y_cone = y[[j for j in range(len(y)) if j not in odd_y]].cuda()
    x, y = x.cuda(), y.cuda()
    check(row_col_lse(x, y, 100.0), x, y, 100.0)
    check(row_col_lse(x, y_cone, 100.0), x, y_cone, 100.0)
    check(row_col_lse(y_cone, x, 100.0), y_cone, x, 100.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("diagonal", [0, 70, -66])
def test_pairs_of_the_diagonal_can_be_left_out(row_col_lse, diagonal, dtype):
    x, y, _, _ = cases.cone_with_outliers(dtype)
    x, y = x.cuda(), y.cuda()
    check(row_col_lse(x, y, 100.0, diagonal=diagonal), x, y, 100.0, diagonal)
    check(row_col_lse(x[:1], y[:1], 100.0, diagonal=0), x[:1], y[:1], 100.0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_no_larger_than_torch_has_in_fp32(row_col_lse, dtype):
    """Our rule for 16-bit inputs: exact products, fp32 accumulation, no rounding of the logits."""
    x, y = cases.unit_features(3000, 512, dtype, 2), cases.unit_features(2900, 512, dtype, 3)
    wanted = cases.exact(x, y, 100.0)
    x, y = x.cuda(), y.cuda()
    logits = 100.0 * (x.float() @ y.float().T)
    peers = (logits.logsumexp(1), logits.logsumexp(0))
    for ours, peer, want in zip(row_col_lse(x, y, 100.0), peers, wanted, strict=True):
        peer_error = (peer.cpu().double() - want).abs().max()
        assert (ours.cpu().double() - want).abs().max() <= 2 * peer_error + 2e-5


def test_two_runs_give_the_same_bits(row_col_lse):
    x, y = (
        cases.unit_features(4096, 512, torch.bfloat16, 4).cuda(),
        cases.unit_features(4100, 512, torch.bfloat16, 5).cuda(),
    )
    first, second = row_col_lse(x, y, 100.0), row_col_lse(x, y, 100.0)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_waits_for_the_device(row_col_lse):
    x, y = cases.unit_features(256, 64, torch.float16, 6).cuda(), cases.unit_features(256, 64, torch.float16, 7).cuda()
    scale = torch.tensor(100.0, device="cuda")
    row_col_lse(x, y, scale)
    torch.cuda.set_sync_debug_mode("error")
    try:
        row_col_lse(x, y, scale)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_is_bounded_by_the_workspace(row_col_lse):
    x, y = (
        cases.unit_features(32768, 64, torch.float16, 8).cuda(),
        cases.unit_features(32768, 64, torch.float16, 9).cuda(),
    )
    row_col_lse(x[:256], y[:256], 10.0)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    row_col_lse(x, y, 10.0, workspace_bytes=16 << 20)
    assert torch.cuda.max_memory_allocated() - before < 24 << 20
