# SPDX-License-Identifier: Apache-2.0
"""What a careless caller passes to a loss either works, and is right, or is refused at once by name: every loss, every
kind of mistake, on both backends of a CPU.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from clipkit.engine import sweeps
from tests.reference.cases import BY_NAME, CASES, value_and_gradients

ROWS, WIDTH = 37, 13
NEEDS_NEGATIVES = ("global_contrastive",)
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}

needs_compiled = pytest.mark.skipif(
    importlib.util.find_spec("clipkit._native") is None, reason="clipkit was installed without its compiled part"
)
every_loss = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_backend = pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=needs_compiled)])


def on(case, backend):
    """The library's function of a case's inputs, by one backend."""
    return lambda **values: case.ours(**values, backend=backend)


def matrices(values):
    return {name: value for name, value in values.items() if value.dim() == 2 and value.is_floating_point()}


def wide(values):
    return {n: value.cpu().double() if value.is_floating_point() else value.cpu() for n, value in values.items()}


def check(case, backend, inputs, constants, tolerance):
    """Loss and gradients are the definition's in float64, as far as the inputs' type goes."""
    ours = wide(value_and_gradients(on(case, backend), inputs, constants))
    truth = value_and_gradients(case.naive, wide(inputs), wide(constants))
    assert abs(ours["loss"] - truth["loss"]) <= 1e-5 * max(1.0, abs(float(truth["loss"])))
    for name in inputs:
        scale = truth[name].norm() + 1e-3 * truth[name].numel() ** 0.5  # of a gradient that is zero, its units
        assert (ours[name] - truth[name]).norm() <= tolerance * scale, name


@every_backend
@every_loss
def test_one_nan_in_any_tower_is_nan_in_the_loss_and_in_its_own_gradient(case, backend):
    inputs, constants = case.make(ROWS, WIDTH, torch.float32)
    for name, features in matrices({**inputs, **constants}).items():
        broken = features.clone()
        broken[3, 5] = torch.nan
        changed = ({**values, **({name: broken} if name in values else {})} for values in (inputs, constants))
        result = value_and_gradients(on(case, backend), *changed)
        assert result["loss"].isnan(), name
        assert name not in inputs or result[name][3, 5].isnan(), name


@every_backend
@every_loss
def test_rows_of_zeros_are_rows_like_others(case, backend):
    inputs, constants = case.make(ROWS, WIDTH, torch.float32)
    for values in (inputs, constants):
        for features in matrices(values).values():
            features[[0, 7, 8]] = 0.0
    check(case, backend, inputs, constants, TOLERANCE[torch.float32])


@every_backend
@every_loss
def test_a_batch_of_one_has_its_value_or_is_refused(case, backend):
    inputs, constants = case.make(1, WIDTH, torch.float32)
    if case.name in NEEDS_NEGATIVES:
        with pytest.raises(ValueError, match=r"^batch: got 1 rows in the global batch; want at least 2"):
            on(case, backend)(**inputs, **constants)
        return
    check(case, backend, inputs, constants, TOLERANCE[torch.float32])


@every_backend
@every_loss
def test_an_empty_batch_is_refused(case, backend):
    inputs, constants = case.make(0, WIDTH, torch.float32)
    with pytest.raises(ValueError, match=r"^batch: got 0 rows in the global batch; want at least [12]; "):
        on(case, backend)(**inputs, **constants)


@every_loss
def test_towers_that_do_not_fit_together_are_refused(case):
    inputs, constants = case.make(ROWS, WIDTH, torch.float32)
    for name, features in matrices({**inputs, **constants}).items():
        pooled = name in case.pooled  # a classifier has as many rows as it likes
        for changed in (features[:, :-1], features[:-1], features[None], features[0], features.long()):
            if pooled and changed.shape[1:] == features.shape[1:] and changed.is_floating_point():
                continue
            if case.name == "info_nce" and name == "a" and changed.shape == features[:-1].shape:
                continue  # fewer queries than keys
            with pytest.raises((ValueError, TypeError)) as caught:
                case.ours(**{**inputs, **constants, name: changed})
            assert str(caught.value).count(";") >= 2, "what came; what is wanted; what to do"


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda memory: memory[:ROWS, :WIDTH], id="wider rows"),
        pytest.param(lambda memory: memory[:ROWS, : 2 * WIDTH : 2], id="every other column"),
        pytest.param(lambda memory: memory[: 2 * ROWS : 2, 1 : WIDTH + 1], id="every other row"),
        pytest.param(lambda memory: memory[:WIDTH, :ROWS].T, id="transposed"),
    ],
)
@every_backend
@every_loss
def test_views_of_any_strides_give_the_bits_of_a_copy(case, backend, view):
    inputs, constants = case.make(ROWS, WIDTH, torch.float32)
    wanted = value_and_gradients(on(case, backend), inputs, constants)
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    towers = [name for name, value in inputs.items() if value.shape == (ROWS, WIDTH)]
    for name in towers:
        leaves[name] = torch.full((2 * ROWS, 2 * ROWS), torch.nan)
        view(leaves[name]).copy_(inputs[name])
        leaves[name].requires_grad_()
    given = {name: view(leaf) if name in towers else leaf for name, leaf in leaves.items()}
    assert not any(given[name].is_contiguous() for name in towers)
    loss = on(case, backend)(**given, **constants)
    loss.backward()
    assert torch.equal(loss, wanted["loss"])
    for name, leaf in leaves.items():
        assert torch.equal(view(leaf.grad) if name in towers else leaf.grad, wanted[name]), name


@every_backend
def test_a_row_repeated_by_expand_is_the_row_repeated(backend):
    inputs, _ = BY_NAME["clip"].make(ROWS, WIDTH, torch.float32)
    one = inputs["b"][:1]
    results = [
        on(BY_NAME["clip"], backend)(**{**inputs, "b": same}) for same in (one.expand(ROWS, -1), one.repeat(ROWS, 1))
    ]
    assert torch.equal(*results)


@every_loss
def test_a_tower_or_scale_on_another_device_is_refused(case):
    inputs, constants = case.make(ROWS, WIDTH, torch.float32)
    _, *others = [name for name, value in {**inputs, **constants}.items() if value.is_floating_point()]
    for name in others:
        with pytest.raises(ValueError, match="meta"):
            case.ours(**{**inputs, **constants, name: {**inputs, **constants}[name].to("meta")})


@pytest.mark.parametrize("backend", ["triton", "cuda", pytest.param("cpu", marks=needs_compiled)])
@every_loss
def test_float64_on_a_kernel_is_refused_and_not_computed_in_fp32(case, backend):
    with pytest.raises(ValueError, match=f"backend: got '{backend}' for torch.float64 tensors on cpu; want .*; "):
        on(case, backend)(
            **{name: value for values in case.make(ROWS, WIDTH, torch.float64) for name, value in values.items()}
        )


@pytest.mark.parametrize(
    "backend, reason",
    [
        pytest.param("cpu", "it computes on the CPU", marks=needs_compiled),
        ("triton", "triton is not installed|it needs a CUDA device"),
        ("cuda", "without its|it needs a CUDA device"),
    ],
)
def test_a_backend_of_another_device_is_refused(backend, reason, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CLIPKIT_CUDA_ON_HOST", raising=False)
    x = torch.ones(3, 4, device="meta")
    wanted = f"backend: got '{backend}' for torch.float32 tensors on meta; want .*({reason})"
    with pytest.raises(ValueError, match=wanted):
        sweeps.log_sum_exps(x, x, torch.ones((), device="meta"), diagonal=None, backend=backend)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [1, 3, 7, 20])
@every_backend
@every_loss
def test_a_width_that_is_no_multiple_of_eight_is_like_any_other(case, backend, width, dtype):
    check(case, backend, *case.make(ROWS, width, dtype), TOLERANCE[dtype])
