# SPDX-License-Identifier: Apache-2.0
"""The Triton backend through the public functions: dispatch, kernels, margin form, closed-form gradients."""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import interpreter_worker as worker
from tests.reference.cases import CASES

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")

TOLERANCE = {"float32": 3e-6, "float16": 6e-4}


@pytest.fixture(scope="module")
def pool():
    with worker.start() as executor:
        yield executor


def loss_errors(name: str, dtype: str, rows: int) -> dict[str, float]:
    """How far loss and gradients of a loss on the Triton backend are from float64, relative to their norms."""
    from tests.reference.cases import BY_NAME, value_and_gradients

    case = BY_NAME[name]
    inputs, constants = case.make(rows, 24, getattr(torch, dtype))
    wide = [{n: v.double() if v.is_floating_point() else v for n, v in d.items()} for d in (inputs, constants)]
    exact = value_and_gradients(case.naive, *wide)
    ours = value_and_gradients(lambda **values: case.ours(**values, backend="triton"), inputs, constants)
    return {n: float((ours[n].double() - v).norm() / v.norm().clamp_min(1e-30)) for n, v in exact.items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_losses_on_the_triton_backend_equal_float64(pool, case, dtype):
    errors = worker.in_worker(pool, loss_errors, case.name, dtype, 70)
    assert max(errors.values()) <= TOLERANCE[dtype], errors
