# SPDX-License-Identifier: Apache-2.0
"""The encoders' operations on the Triton backend, run by Triton's interpreter: no further from float64 than plain torch
in the same dtype.
"""

from __future__ import annotations

import pytest
import torch

from tests.encoders import fused_cases
from tests.interpreter import interpreter_worker as worker

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")


@pytest.fixture(scope="module")
def pool():
    with worker.start() as executor:
        yield executor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", fused_cases.CASES, ids=lambda case: case.name)
def test_operations_equal_float64(pool, case, dtype):
    for mine, allowed in worker.in_worker(pool, fused_cases.errors, case.name, dtype, "triton"):
        assert mine <= allowed


def far_apart_tokens() -> bool:
    """Pictures, and rows, more than 2**31 elements apart give what they give side by side (only the pages that are
    touched exist).
    """
    from clipkit.kernels.residual_norm import add_norm
    from clipkit.kernels.rotation import rotate

    generator = torch.Generator().manual_seed(0)
    close = torch.randn(2, 3, 1, 16, generator=generator)
    far = torch.empty(2**31 + 3 * 16, dtype=torch.float32).as_strided(close.shape, (2**31, 16, 16, 1))
    far.copy_(close)
    angle = torch.rand(2, 8, generator=generator)
    turned = [rotate(tokens, tokens, angle.cos(), angle.sin(), None, inverse=False) for tokens in (close, far)]
    rows = [tokens[:, 1, 0] for tokens in (close, far)]
    normed = [add_norm(some, some, torch.ones(16), torch.zeros(16), 1e-6) for some in rows]
    return all(torch.equal(a, b) for side in (turned, normed) for a, b in zip(*side, strict=True))


def test_tokens_more_than_two_billion_elements_apart(pool):
    assert worker.in_worker(pool, far_apart_tokens)


def unknown_places() -> torch.Tensor:
    """Which tokens are NaN where two places are outside the table and all around it is NaN."""
    from clipkit.kernels.rotation import rotate

    angle = torch.full((9, 4), torch.nan)
    angle[2:6] = 1.0
    places = torch.tensor([[0, 3, 4], [-1, 2, 1]])
    tokens = torch.ones(2, 4, 1, 8)
    turned, _ = rotate(tokens, tokens, angle.cos()[2:6], angle.sin()[2:6], places, inverse=False)
    return turned.isnan().all(-1)[:, :, 0] | turned.isnan().any(-1)[:, :, 0]


def test_places_outside_the_table_give_nan(pool):
    assert worker.in_worker(pool, unknown_places).tolist() == [[False, False, False, True], [False, True, False, False]]


def sums_of_many_programs(rows: int) -> list[float]:
    """Errors of the gradients of weight and bias where every program has several rows, the last one fewer."""
    from unittest import mock

    from clipkit.kernels import norm_launches
    from clipkit.kernels.residual_norm import norm_gradients
    from clipkit.kernels.swiglu_norm import swiglu_norm_gradients

    from clipkit.engine import torch_backend

    generator = torch.Generator().manual_seed(0)
    grad, gate, value = (torch.randn(rows, 20, generator=generator) for _ in range(3))
    weight = torch.randn(20, generator=generator)
    gated = (gate.double(), value.double(), weight.double())
    _, mean, rstd = torch_backend.swiglu_norm(*gated, torch.zeros(20).double(), 1e-6)
    with mock.patch.object(norm_launches, "MOST_PROGRAMS", 3):
        ours = swiglu_norm_gradients(grad, gate, value, weight, mean.float(), rstd.float())
        plain = norm_gradients(grad, None, value, weight, mean.float(), rstd.float())
    want = torch_backend.swiglu_norm_gradients(grad.double(), *gated, mean, rstd)
    want_plain = torch_backend.norm_gradients(grad.double(), None, *gated[1:], mean, rstd)
    pairs = zip((*ours, *plain), (*want, *want_plain), strict=True)
    return [float((mine.double() - exact).norm() / exact.norm()) for mine, exact in pairs]


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_programs_share_the_rows(pool, rows):
    assert max(worker.in_worker(pool, sums_of_many_programs, rows)) <= 3e-6


def waits(name: str) -> str:
    """What in an operation and its gradients would wait for the device, or ""."""
    from tests.interpreter.no_waiting import what_waits

    case = fused_cases.BY_NAME[name]
    inputs, constants = case.make(torch.float32, torch.Generator().manual_seed(0))
    return what_waits(lambda: fused_cases.values_and_gradients(case.ours, inputs, constants, backend="triton"))


@pytest.mark.parametrize("case", fused_cases.CASES, ids=lambda case: case.name)
def test_nothing_waits_for_the_device(pool, case):
    assert worker.in_worker(pool, waits, case.name) == ""
