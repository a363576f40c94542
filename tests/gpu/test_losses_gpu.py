# SPDX-License-Identifier: Apache-2.0
"""Every loss on a card: as close to float64 as on the CPU, bit-equal twice, and no wait for the device on the way."""

from __future__ import annotations

import pytest
import torch

from tests.reference.cases import CASES, value_and_gradients

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}


def _on_card(tensors):
    return {name: value.cuda() for name, value in tensors.items()}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_losses_equal_float64(case, dtype):
    inputs, constants = case.make(300, 40, dtype)
    truth = value_and_gradients(
        case.naive,
        {name: value.double() for name, value in inputs.items()},
        {n: v.double() if v.is_floating_point() else v for n, v in constants.items()},
    )
    ours = value_and_gradients(case.ours, _on_card(inputs), _on_card(constants))
    again = value_and_gradients(case.ours, _on_card(inputs), _on_card(constants))
    for name, expected in truth.items():
        error = float((ours[name].double().cpu() - expected).norm() / expected.norm().clamp_min(1e-30))
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"
        assert torch.equal(ours[name], again[name]), f"{name} differs from run to run"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_waits_for_the_device(case):
    inputs, constants = (_on_card(tensors) for tensors in case.make(64, 16, torch.bfloat16))
    value_and_gradients(case.ours, inputs, constants)  # allocations and lazy initialisation
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value_and_gradients(case.ours, inputs, constants)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_losses_on_the_triton_backend_equal_float64(case, dtype):
    pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")
    inputs, constants = case.make(700, 96, dtype)
    wide = [{n: v.double() if v.is_floating_point() else v for n, v in d.items()} for d in (inputs, constants)]
    truth = value_and_gradients(case.naive, *wide)
    ours, again = (
        value_and_gradients(
            lambda **values: case.ours(**values, backend="triton"), _on_card(inputs), _on_card(constants)
        )
        for _ in range(2)
    )
    for name, expected in truth.items():
        error = float((ours[name].double().cpu() - expected).norm() / expected.norm().clamp_min(1e-30))
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"
        assert torch.equal(ours[name], again[name]), f"{name} differs from run to run"
