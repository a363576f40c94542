# SPDX-License-Identifier: Apache-2.0
"""The Triton backend's sweeps with gradients, run by Triton's interpreter: no further from float64 than plain torch in
fp32 is, but for one rounding of the weights to 16 bit.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.interpreter import interpreter_worker as worker
from tests.interpreter import no_waiting
from tests.interpreter import sweep_cases as cases
from tests.reference.cases import CASES

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")

DTYPES = [torch.float32, torch.float16]
# (N, M, d): single elements, one below and above a tile, a width that is no multiple of a K block, several tiles.
SHAPES = [(1, 1, 6), (2, 65, 96), (63, 64, 40), (130, 159, 48)]


@pytest.fixture(scope="module")
def pool():
    with worker.start() as executor:
        yield executor


def check(pool, sweep, arguments, dtype):
    ours, torchs = (
        worker.in_worker(pool, cases.relative_errors, sweep, arguments, backend=backend)
        for backend in ("triton", "torch")
    )
    for mine, peer in zip(ours, torchs, strict=True):
        assert (mine is None) == (peer is None)
        assert mine is None or mine <= 2 * peer + cases.TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, columns, width", SHAPES)
def test_exponential_products_equal_float64(pool, rows, columns, width, dtype):
    arguments = cases.exponential("unit", rows, columns, width, dtype, diagonal=columns - rows)
    check(pool, "exponential_products", arguments, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("data", cases.DATA)
def test_exponential_products_of_every_kind_of_data(pool, data, dtype):
    check(pool, "exponential_products", cases.exponential(data, 130, 131, 40, dtype), dtype)


@pytest.mark.parametrize("terms", ["rows", "columns"])
def test_one_direction_and_one_product_alone(pool, terms):
    arguments = cases.exponential("cone", 70, 70, 24, torch.float16, terms=terms)
    for want_x, want_y in ((True, False), (False, True), (False, False)):
        check(pool, "exponential_products", {**arguments, "want_x": want_x, "want_y": want_y}, torch.float16)


@pytest.mark.parametrize("terms", ["both", "rows", "columns"])
@pytest.mark.parametrize("data", cases.DATA)
def test_exponential_products_with_a_scale_for_each_line(pool, data, terms):
    for dtype, want_y in zip(DTYPES, (True, False), strict=True):
        arguments = cases.exponential(data, 70, 131, 40, dtype, diagonal=61, terms=terms, scaled=True)
        check(pool, "exponential_products", {**arguments, "want_y": want_y}, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, columns, width", SHAPES)
def test_sigmoid_sweep_equals_float64(pool, rows, columns, width, dtype):
    arguments = cases.sigmoid("unit", rows, columns, width, dtype, diagonal=columns - rows)
    check(pool, "sigmoid_sweep", arguments, dtype)


@pytest.mark.parametrize("bias", [-100.0, -10.0, 30.0])
@pytest.mark.parametrize("data", cases.DATA)
def test_sigmoid_sweep_of_every_kind_of_data(pool, data, bias):
    """Bias -100: losses and weights far below the rounding of 1 keep their digits."""
    arguments = cases.sigmoid(data, 70, 65, 24, torch.float32, bias=bias)
    check(pool, "sigmoid_sweep", arguments, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, columns, width", SHAPES)
def test_labelled_sigmoid_sweep_equals_float64(pool, rows, columns, width, dtype):
    check(pool, "labelled_sigmoid_sweep", cases.labelled("unit", rows, columns, width, dtype), dtype)


def test_a_classifier_without_any_positive(pool):
    arguments = cases.labelled("unit", 70, 65, 24, torch.float32)
    arguments |= {"target_offsets": torch.zeros(71, dtype=torch.int64), "target_indices": torch.zeros(0).long()}
    check(pool, "labelled_sigmoid_sweep", arguments, torch.float32)


def test_the_loss_alone_is_the_same(pool):
    for name, make in (("sigmoid_sweep", cases.sigmoid), ("labelled_sigmoid_sweep", cases.labelled)):
        arguments = make("unit", 130, 70, 24, torch.float16) | {"want_gradients": False}
        check(pool, name, arguments, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, columns, width", [(1, 1, 6), (65, 2, 96), (130, 159, 48)])
def test_softmax_sweep_equals_float64(pool, rows, columns, width, dtype):
    check(pool, "softmax_sweep", cases.softmax("unit", rows, columns, width, dtype), dtype)


@pytest.mark.parametrize("data", cases.DATA)
def test_softmax_sweep_of_every_kind_of_data(pool, data):
    check(pool, "softmax_sweep", cases.softmax(data, 70, 131, 24, torch.float32), torch.float32)


def test_products_of_rows_more_than_two_billion_elements_apart(pool):
    g_y, gt_x, far_g_y, far_gt_x = worker.in_worker(pool, worker.products_of_far_apart_rows)
    assert (g_y == far_g_y).all()
    # torch multiplies by the rows themselves here, and for strides like these by another routine on some processors
    np.testing.assert_allclose(far_gt_x, gt_x, rtol=1e-6)


def all_sweeps(dtype, rows=130, columns=150, width=24):
    makers = {
        "exponential_products": cases.exponential,
        "sigmoid_sweep": cases.sigmoid,
        "labelled_sigmoid_sweep": cases.labelled,
        "softmax_sweep": cases.softmax,
    }
    return [(name, make("unit", rows, columns, width, dtype)) for name, make in makers.items()]


def test_a_small_workspace_changes_only_the_rounding_and_two_runs_nothing(pool):
    for name, arguments in all_sweeps(torch.float16):
        whole, in_waves, again = (
            worker.in_worker(pool, cases.results, name, arguments, workspace_bytes=size) for size in (1 << 20, 1, 1)
        )
        for one, many, same in zip(whole, in_waves, again, strict=True):
            torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))
            assert torch.equal(many, same)


def test_nan_features_make_nan_where_they_are_felt(pool):
    """Their own row of G Y and every row of Gᵀ X, never a number."""
    for name, arguments in all_sweeps(torch.float32):
        arguments["x"][66, 0] = torch.nan
        g_y, gt_x = [r for r in worker.in_worker(pool, cases.results, name, arguments) if r.dim() == 2]
        assert g_y.isnan().any(1).nonzero().flatten().tolist() == [66], name
        assert gt_x.isnan().any(1).all(), name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_loss_waits_for_the_device(pool, case):
    assert worker.in_worker(pool, no_waiting.loss_waits, case.name) == ""


def test_no_sweep_waits_for_the_device_and_the_test_would_notice(pool):
    anchors = ("anchor_statistics", cases.anchors("unit", 9, 9, 8, torch.float32, scaled=True))
    for name, arguments in [*all_sweeps(torch.float32, 9, 9, 8), anchors]:
        assert worker.in_worker(pool, no_waiting.sweep_waits, name, arguments) == ""
    assert all(worker.in_worker(pool, no_waiting.known_waits))
