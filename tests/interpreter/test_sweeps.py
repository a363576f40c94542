# SPDX-License-Identifier: Apache-2.0
"""The Triton backend's sweeps with gradients, run by Triton's interpreter: no further from float64 than plain torch in
fp32 is, but for one rounding of the weights to 16 bit.
"""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import interpreter_worker as worker
from tests.interpreter import sweep_cases as cases

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
