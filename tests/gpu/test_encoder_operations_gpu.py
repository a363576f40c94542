# SPDX-License-Identifier: Apache-2.0
"""The encoders' operations on a card: Triton's kernels and plain torch no further from float64 than torch's own
operations in the same dtype, at the shapes of the models; equal bits twice, no wait for the device.
"""

from __future__ import annotations

import pytest
import torch

from tests.encoders import fused_cases
from tests.encoders.fused_cases import gated, residual, rotation

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
MODELS = [
    rotation(197, 12, 64, name="B/16, rotate"),
    rotation(129, 16, 64, dropped=True, name="L/14, rotate, half of the patches"),
    rotation(257, 16, 88, name="heads of 88"),
    rotation(257, 16, 112, name="heads of 112"),
    gated((8, 197), 2048, 2048, "B/16, swiglu_norm"),
    gated((8, 257), 2730, 2752, "L/14, swiglu_norm"),
    residual((8, 197), 768, "B/16, add_norm", post=False),
    residual((8, 257), 1024, "L/14, add_norm, fp32 residual", post=False, wide=True),
    residual((8, 257), 1792, "E/14, add_post_norm", post=True),
    residual((8, 257), 1792, "E/14, add_post_norm, fp32 residual", post=True, wide=True),
]
EVERY = [*fused_cases.CASES, *MODELS]
every_case = pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(fused_cases, "BY_NAME", {case.name: case for case in EVERY})


@DTYPES
@every_case
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_errs_no_more_than_plain_torch_in_the_same_dtype(backend, case, dtype):
    for mine, allowed in fused_cases.errors(case.name, dtype, backend, device="cuda"):
        assert mine <= allowed


def on_card(case, dtype):
    inputs, constants = case.make(dtype, torch.Generator().manual_seed(0))
    return [value.cuda() for value in inputs], [None if c is None else c.cuda() for c in constants]


@every_case
def test_two_runs_give_the_same_bits(case):
    inputs, constants = on_card(case, torch.bfloat16)
    first, second = (fused_cases.values_and_gradients(case.ours, inputs, constants, backend="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_case
def test_nothing_waits_for_the_device(case):
    inputs, constants = on_card(case, torch.bfloat16)
    leaves = [value.requires_grad_() for value in inputs]
    results = case.ours(*leaves, *constants, backend="triton")
    incoming = [torch.ones_like(result) for result in results]
    torch.autograd.grad(results, leaves, incoming)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(case.ours(*leaves, *constants, backend="triton"), leaves, incoming)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_case
def test_compiled_by_inductor_equals_eager(case):
    """Plain torch, whose formula the compiler fuses, and the kernels, which it calls."""
    inputs, constants = on_card(case, torch.float32)
    for backend in ("torch", "triton"):
        torch._dynamo.reset()
        compiled = torch.compile(case.ours, fullgraph=True)
        ours = fused_cases.values_and_gradients(compiled, inputs, constants, backend=backend)
        eager = fused_cases.values_and_gradients(case.ours, inputs, constants, backend=backend)
        for mine, other in zip(ours, eager, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
