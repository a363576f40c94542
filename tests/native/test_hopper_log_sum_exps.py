# SPDX-License-Identifier: Apache-2.0
"""The Hopper backend from features to log-sum-exps: sweep on simulated multiprocessors, then the finaliser's and the
repair's own lines, against float64."""

import itertools

import pytest
import torch

import clipkit
from clipkit.engine.cuda_backend import hopper as backend
from tests.interpreter import kernel_cases as cases
from tests.native import hopper_model as hopper

pytestmark = pytest.mark.usefixtures("native")

HALVES = [torch.bfloat16, torch.float16]
SMALLEST = 1
"""Bytes of workspace: bands of 2048 rows, the shortest there are."""


def simulated(form, rows, pairs_per_item, partials):
    for tensor in partials:
        tensor.fill_(float("nan"))
    options = {"diagonal": backend.diagonal_of(form, rows), "pairs_per_item": pairs_per_item, "clusters": 2}
    assert hopper.launch(form.x, form.y, form.scale.item(), hopper.Partials(*partials), rows=rows, **options) == ""


def log_sum_exps(x, y, scale, diagonal=None, **options):
    options = {"clusters": 2, "launch": simulated, "diagonal": diagonal, **options}
    return backend.sweep_log_sum_exps(x, y, torch.tensor(scale), **options)


def check(result, x, y, scale, diagonal=None):
    for got, want in zip(result, cases.exact(x, y, scale, diagonal), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2 * cases.bound(x, y, scale))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows, columns, width", cases.SHAPES)
def test_equal_float64(rows, columns, width, dtype):
    """Widths of 6 too: zeros are put behind what bulk copies cannot address."""
    x, y = cases.unit_features(rows, width, dtype, 0), cases.unit_features(columns, width, dtype, 1)
    check(log_sum_exps(x, y, 100.0), x, y, 100.0)


@pytest.mark.parametrize("dtype", HALVES)
def test_outliers_are_repaired(dtype):
    x, y, odd_x, odd_y = cases.cone_with_outliers(dtype)
    y = y[[j for j in range(len(y)) if j not in odd_y]]
    check(log_sum_exps(x, y, 100.0), x, y, 100.0)
    check(log_sum_exps(y, x, 100.0), y, x, 100.0)
    # That they would be wrong without: their sums are nothing.
    _, partials = hopper.sweep(x, y, 100.0)
    assert hopper.merged(partials)[0].isneginf().nonzero().flatten().tolist() == odd_x


@pytest.mark.parametrize("diagonal", [None, 0, 1500, -2060, 500, -4000])
def test_bands_do_not_show(diagonal):
    """Two bands of rows; the diagonal in one, the other, both or neither."""
    x, y = cases.unit_features(2100, 40, torch.float16, 2), cases.unit_features(600, 40, torch.float16, 3)
    check(log_sum_exps(x, y, 60.0, diagonal, workspace_bytes=SMALLEST), x, y, 60.0, diagonal)


def test_columns_that_only_one_band_flushed_are_repaired_or_not_needed():
    """Column 3 is far below its tile's offset in the first band and on top in the second, column 5 below in both."""
    x, y = cases.unit_features(2100, 32, torch.bfloat16, 4), cases.unit_features(64, 32, torch.bfloat16, 5)
    x[:, 0], y[:, 0] = 1.0, 1.0
    y[3, 0], y[5, 0] = -1.0, -1.0
    x[2048:] = y[3]
    check(log_sum_exps(x, y, 100.0, workspace_bytes=SMALLEST), x, y, 100.0)


def test_nothing_left_is_minus_infinity():
    x = cases.unit_features(1, 64, torch.bfloat16, 6)
    row, column = log_sum_exps(x, x, 100.0, 0)
    assert row.item() == column.item() == -torch.inf
    row, column = log_sum_exps(x[:0], x, 100.0)
    assert row.shape == (0,)
    assert column.item() == -torch.inf


def test_strided_features_and_odd_addresses():
    wide = cases.unit_features(300, 200, torch.float16, 7)
    x, y = wide[:, 1:70], wide[::3, 5:74]
    check(log_sum_exps(x, y, 30.0), x, y, 30.0)


def test_a_nan_reaches_its_lines():
    x, y = cases.unit_features(70, 64, torch.bfloat16, 8), cases.unit_features(40, 64, torch.bfloat16, 9)
    x[66, 3] = float("nan")
    row, column = log_sum_exps(x, y, 10.0)
    assert row.isnan().nonzero().flatten().tolist() == [66]
    assert column.isnan().all()


def test_workspace_bounds_the_bands():
    bands = backend._bands(1_000_000, 1_000_000, backend.WORKSPACE_BYTES)
    assert bands[0].start == 0
    assert bands[-1].stop == 1_000_000
    assert all(before.stop == after.start for before, after in itertools.pairwise(bands))
    plan = hopper.plan(len(bands[0]), 1_000_000, clusters=66)
    sums = plan.column_tiles * len(bands[0]) + plan.column_strips * 1_000_000
    offsets = (plan.row_groups + plan.column_strips) * plan.column_tiles
    assert 4 * (sums + offsets) <= 1.25 * backend.WORKSPACE_BYTES


def test_what_the_sweep_does_not_take_runs_on_plain_torch():
    x, y = cases.unit_features(20, 16, torch.float32, 10), cases.unit_features(30, 16, torch.float32, 11)
    check(backend.log_sum_exps(x, y, torch.tensor(20.0), diagonal=None), x, y, 20.0)


def test_a_loss_runs_on_it_by_name(monkeypatch):
    """Through the public function and the dispatch table, value and gradients beside plain torch."""
    monkeypatch.setenv("CLIPKIT_CUDA_ON_HOST", "1")
    monkeypatch.setattr(backend, "_clusters", lambda like: 2)
    monkeypatch.setattr(backend, "_launch", simulated)
    images, texts = (cases.unit_features(150, 64, torch.float16, seed).requires_grad_() for seed in (12, 13))
    losses, gradients = [], []
    for name in ("cuda", "torch"):
        losses.append(clipkit.clip_loss(images, texts, 50.0, backend=name))
        gradients.append(torch.autograd.grad(losses[-1], [images, texts]))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-6)


BAD = {
    "address": ({"x": 8}, "x: got rows that bulk copies"),
    "stride": ({"y_stride": 60}, "y: got rows that overlap"),
    "pitch": ({"x_stride": 68}, "x: got rows that bulk copies"),
    "dtype": ({"dtype": "float32"}, "dtype"),
    "rows": ({"rows": 11}, "first_row, rows"),
    "diagonal": ({"diagonal": 10}, "diagonal"),
    "tiles": ({"rows": 2**24, "x_rows": 2**24, "columns": 2**24}, "rows, columns: got more than 2.30 tiles"),
    "many rows": ({"x_rows": 2**31}, "x_rows"),
    "no rows": ({"rows": 0}, "rows, columns"),
    "items": ({"pairs_per_item": 9}, "pairs_per_item"),
    "sums": ({"row_sums": 0}, "row_sums"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(native, name):
    good = {
        **{"dtype": "bfloat16", "x": 16, "y": 16, "x_rows": 10, "columns": 10, "width": 64, "x_stride": 64},
        **{"y_stride": 64, "scale": 16, "first_row": 0, "rows": 10, "diagonal": None, "pairs_per_item": 1},
        **dict.fromkeys(["row_sums", "row_offsets", "column_sums", "column_offsets"], 16),
        "stream": 0,
    }
    wrong, said = BAD[name]
    with pytest.raises(ValueError, match=said):
        native.hopper_sweep(**{**good, **wrong})
