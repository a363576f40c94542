# SPDX-License-Identifier: Apache-2.0
"""Each loss and its closed-form gradients equal the definition in float64, and pass gradcheck, at awkward shapes."""

from __future__ import annotations

import pytest
import torch

import clipkit
from tests.reference.cases import BY_NAME, CASES, value_and_gradients

SHAPES = [(1, 6), (2, 6), (5, 1), (63, 6), (65, 96), (127, 7), (130, 33)]
NEEDS_NEGATIVES = ("global_contrastive",)


@pytest.mark.parametrize("rows, width", SHAPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_value_and_gradients_equal_the_definition(case, rows, width):
    if rows == 1 and case.name in NEEDS_NEGATIVES:
        pytest.skip("this loss has no value without negatives; the error is tested elsewhere")
    inputs, constants = case.make(rows, width, torch.float64)
    ours = value_and_gradients(case.ours, inputs, constants)
    truth = value_and_gradients(case.naive, inputs, constants)
    for name, expected in truth.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradcheck(case):
    inputs, constants = case.make(5, 4, torch.float64)
    leaves = [value.clone().requires_grad_() for value in inputs.values()]
    call = _with_frozen_estimates if case.name == "global_contrastive" else case.ours
    assert torch.autograd.gradcheck(lambda *values: call(**dict(zip(inputs, values, strict=True)), **constants), leaves)


def _with_frozen_estimates(a, b, s, u, v):
    """The surrogate holds u constant, finite differences would not: with a vanishing γ the two agree."""
    return clipkit.global_contrastive_loss(a, b, s, u, v, gamma=1e-14, eps=1e-3)[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_only_the_wanted_gradients_are_asked_for(case):
    """Freezing any input leaves the others' gradients as they are (a LiT trainer freezes a tower)."""
    inputs, constants = case.make(9, 5, torch.float64)
    everything = value_and_gradients(case.ours, inputs, constants)
    for frozen in inputs:
        trained = {name: value for name, value in inputs.items() if name != frozen}
        if not trained:
            continue
        some = value_and_gradients(case.ours, trained, {**constants, frozen: inputs[frozen]})
        for name in trained:
            torch.testing.assert_close(some[name], everything[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tiles_do_not_show(case, monkeypatch):
    """The same numbers whatever the height of the tiles."""
    inputs, constants = case.make(40, 6, torch.float64)
    whole = value_and_gradients(case.ours, inputs, constants)
    from clipkit.engine.torch_backend import tiles

    monkeypatch.setattr(tiles, "_FEWEST_ROWS", 7)
    monkeypatch.setattr(tiles, "_DEFAULT_WORKSPACE_BYTES", 1)
    tiled = value_and_gradients(case.ours, inputs, constants)
    for name, expected in whole.items():
        torch.testing.assert_close(tiled[name], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_runs_are_bit_equal(case):
    inputs, constants = case.make(70, 12, torch.float32)
    first = value_and_gradients(case.ours, inputs, constants)
    second = value_and_gradients(case.ours, inputs, constants)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_gradient_is_computed_without_autograd(case):
    inputs, constants = case.make(5, 4, torch.float64)
    with torch.no_grad():
        loss = case.ours(**inputs, **constants)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, case.naive(**inputs, **constants), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_scale_is_a_float_a_scalar_or_one_element_and_its_gradient_has_its_shape(shape):
    inputs, _ = BY_NAME["clip"].make(9, 5, torch.float32)
    scale = torch.full(shape, 7.0, requires_grad=True)
    loss = BY_NAME["clip"].ours(inputs["a"], inputs["b"], scale)
    loss.backward()
    assert scale.grad is not None
    assert scale.grad.shape == shape
    assert torch.equal(loss.detach(), BY_NAME["clip"].ours(inputs["a"], inputs["b"], 7.0))
