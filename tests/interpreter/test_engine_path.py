# SPDX-License-Identifier: Apache-2.0
"""The Triton backend through the public functions: dispatch, kernel, margin form, closed-form backward."""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import interpreter_worker as worker

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")


@pytest.fixture(scope="module")
def pool():
    with worker.start() as executor:
        yield executor


def clip_on(backend: str, dtype: str, rows: int) -> list[list[float]]:
    """Loss and gradients, as plain numbers, of the clip loss on a named backend (float64 for backend "torch")."""
    import clipkit
    from tests.reference.cases import BY_NAME, value_and_gradients

    inputs, _ = BY_NAME["clip"].make(rows, 24, getattr(torch, dtype))
    if backend == "torch":
        inputs = {name: value.double() for name, value in inputs.items()}
    results = value_and_gradients(lambda a, b, s: clipkit.clip_loss(a, b, s, backend=backend), inputs, {})
    return [value.double().flatten().tolist() for value in results.values()]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("float16", 1e-3)])
@pytest.mark.parametrize("rows", [1, 70])
def test_clip_loss_on_the_triton_backend_equals_float64(pool, dtype, tolerance, rows):
    ours, truth = (pool.submit(clip_on, backend, dtype, rows).result() for backend in ("triton", "torch"))
    for actual, expected in zip(map(torch.tensor, ours), map(torch.tensor, truth), strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
