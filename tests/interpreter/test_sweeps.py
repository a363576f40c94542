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
