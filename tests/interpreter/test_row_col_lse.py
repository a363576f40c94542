# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of the forward statistics, run by Triton's interpreter, against float64. bf16 is left to the GPU
tests: the interpreter handles bf16 values as raw integers."""

import pytest
import torch

from tests.interpreter import interpreter_worker as worker
from tests.interpreter import kernel_cases as cases

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")


@pytest.fixture(scope="module")
def pool():
    with worker.start() as executor:
        yield executor


def run(pool, x, y, scale, **options):
    factor = scale.numpy() if isinstance(scale, torch.Tensor) else scale
    row, column = worker.in_worker(pool, worker.row_col_lse, x.numpy(), y.numpy(), factor, **options)
    assert row.dtype == column.dtype == "float32"
    return torch.from_numpy(row).double(), torch.from_numpy(column).double()


def check(result, x, y, scale, diagonal=None):
    for got, want in zip(result, cases.exact(x, y, scale, diagonal), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=cases.bound(x, y, scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows, columns, width", cases.SHAPES)
def test_statistics_equal_float64(pool, rows, columns, width, dtype):
    x, y = cases.unit_features(rows, width, dtype, 0), cases.unit_features(columns, width, dtype, 1)
    check(run(pool, x, y, 100.0), x, y, 100.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_outliers_at_scale_100_are_repaired(pool, dtype):
    x, y, odd_x, odd_y = cases.cone_with_outliers(dtype)
    row = cases.exact(x, y, 100.0)[0]
    # The case is what it claims to be: these rows lie far under their tiles' largest logits.
    in_cone = [i for i in range(len(x)) if i not in odd_x]
    regular = row[in_cone].min()
    x_without_partners = 100.0 * (x[odd_x].double() @ y.double().T)
    assert regular > 60
    assert x_without_partners.median() < -60
    check(run(pool, x, y, 100.0), x, y, 100.0)
    # Without the odd rows of y nothing lifts the odd rows of x: their whole tile row is flushed.
    y_cone = y[[j for j in range(len(y)) if j not in odd_y]]
    assert cases.exact(x, y_cone, 100.0)[0][odd_x].max() < regular - 87
    check(run(pool, x, y_cone, 100.0), x, y_cone, 100.0)
    check(run(pool, y_cone, x, 100.0), y_cone, x, 100.0)


@pytest.mark.parametrize("diagonal", [0, 70, -66])
@pytest.mark.parametrize("rows, columns", [(140, 150), (1, 1), (71, 1)])
def test_pairs_of_the_diagonal_can_be_left_out(pool, rows, columns, diagonal):
    x, y, _, _ = cases.cone_with_outliers(torch.float32)
    x, y = x[:rows], y[:columns]
    diagonal = max(1 - rows, min(columns - 1, diagonal))
    check(run(pool, x, y, 100.0, diagonal=diagonal, workspace_bytes=1), x, y, 100.0, diagonal)


@pytest.mark.parametrize("scale", [-30.0, 0.0, 1e4])
def test_any_scale_is_exact(pool, scale):
    x, y = cases.unit_features(70, 32, torch.float32, 2), cases.unit_features(66, 32, torch.float32, 3)
    check(run(pool, x, y, scale), x, y, scale)


def test_bands_of_rows_change_only_the_rounding(pool):
    x, y = cases.unit_features(400, 24, torch.float32, 4), cases.unit_features(90, 24, torch.float32, 5)
    check(run(pool, x, y, 50.0, workspace_bytes=1), x, y, 50.0)


def test_column_flushed_in_one_band_only_is_exact(pool):
    x, y, _, _ = cases.cone_with_outliers(torch.float32)
    x = torch.cat([x, -x])  # the second band lifts the columns that the first one flushes
    check(run(pool, x, y, 100.0, workspace_bytes=1), x, y, 100.0)


@pytest.mark.parametrize("stack", [1, 3, 5])
def test_stacks_of_tiles_change_only_the_rounding(pool, stack):
    x, y, _, _ = cases.cone_with_outliers(torch.float32)
    x = torch.cat([-x[:70], x])  # the tiles further down lift the columns that the first one flushes
    check(run(pool, x, y, 100.0, stack=stack), x, y, 100.0)


def test_scale_may_be_a_tensor(pool):
    x, y = cases.unit_features(5, 8, torch.float32, 6), cases.unit_features(7, 8, torch.float32, 7)
    plain = run(pool, x, y, 14.25)
    for tensor in (torch.tensor(14.25), torch.tensor([14.25]), torch.tensor(14.25, dtype=torch.float64)):
        assert all(torch.equal(a, b) for a, b in zip(run(pool, x, y, tensor), plain, strict=True))


def test_an_empty_side_gives_minus_infinity(pool):
    row, column = run(pool, torch.empty(0, 8), cases.unit_features(3, 8, torch.float32, 8), 1.0)
    assert row.shape == (0,)
    assert torch.equal(column, torch.full((3,), -torch.inf, dtype=torch.float64))


def test_nan_features_poison_their_own_row_and_every_column(pool):
    x, y = cases.unit_features(70, 8, torch.float32, 9), cases.unit_features(3, 8, torch.float32, 10)
    x[66, 0] = float("nan")
    row, column = run(pool, x, y, 10.0)
    assert row.isnan().nonzero().flatten().tolist() == [66]
    assert column.isnan().all()


def test_rows_more_than_two_billion_elements_apart(pool):
    row, column, far_row, far_column = worker.in_worker(pool, worker.far_apart_rows)
    assert (row == far_row).all()
    assert (column == far_column).all()


def test_merge_shows_nan_and_flags_flushed_lines(pool):
    log_sum, suspect = worker.in_worker(pool, worker.merge_poisoned)
    assert log_sum[0] == pytest.approx(1.0986123)
    assert torch.tensor(log_sum[1]).isnan()
    assert log_sum[2] == float("-inf")
    assert suspect.tolist() == [0, 0, 1]
