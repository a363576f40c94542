# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of distillation, run by Triton's interpreter, against float64: two forms in one tile, and the
Hessian-vector product of gradient distillation."""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import interpreter_worker as worker
from tests.interpreter import two_form_cases as cases

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")

TOLERANCE = {"float32": 6e-6, "float16": 6e-4, "bfloat16": 6e-4}
PRODUCTS = {"float32": 3e-5, "float16": 6e-4}  # fp32: what 50 nats are rounded by, a few times


@pytest.fixture(scope="module")
def pool():
    with worker.start() as executor:
        yield executor


# What follows down to the first test runs in the interpreter's process.


def divergence_errors(rows, columns, width, teacher_width, dtype, scales, **options):
    forms = cases.two_forms(rows, columns, width, teacher_width, getattr(torch, dtype), scales)
    want, got = cases.exact_divergence(forms), cases.kernel_divergence(forms, **options)
    # The sums in nats a line: one column, or a sharp teacher, leaves an entropy near zero of numbers near one.
    sums = [float((got[k].double() - want[k]).abs() / (want[k] + rows + columns)) for k in (0, 1)]
    products = zip(got[2:], want[2:], strict=True)
    return [*sums, *(None if ours is None else cases.relative(ours, truth) for ours, truth in products)]


def identical_forms(dtype):
    x, y, scale, *_ = cases.two_forms(70, 66, 40, 40, getattr(torch, dtype), (100.0, 100.0))
    divergence, _, g_y, gt_x = cases.kernel_divergence([x, y, scale, x, y, scale])
    return [float(value.abs().sum()) for value in (divergence, g_y, gt_x)]


def nearly_identical_forms():
    x, y, scale, *_ = cases.two_forms(70, 66, 40, 40, torch.float32, (100.0, 100.0))
    nudged = x + 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    forms = [nudged, y, scale, x, y, scale]
    want = cases.exact_divergence(forms)
    return float(want.divergence), cases.relative(cases.kernel_divergence(forms)[0], want.divergence)


def huge_logits():
    forms = cases.two_forms(66, 65, 16, 16, torch.float32, (1e4, 30.0))
    forms[0][1] = forms[0][0]  # duplicates
    return [
        cases.relative(*pair)
        for pair in zip(cases.kernel_divergence(forms), cases.exact_divergence(forms), strict=True)
    ]


def divergence_of_poisoned():
    forms = cases.two_forms(66, 3, 8, 8, torch.float32, (10.0, 10.0))
    forms[0][65, 0] = torch.nan
    divergence, _, g_y, gt_x = cases.kernel_divergence(forms)
    return [bool(value.isnan().any()) for value in (divergence, g_y, gt_x)]


def two_runs(dtype):
    forms = cases.two_forms(130, 70, 40, 24, getattr(torch, dtype), (60.0, 30.0))
    return all(torch.equal(a, b) for a, b in zip(*(cases.kernel_divergence(forms) for _ in range(2)), strict=True))


def curvature_errors(rows, columns, width, dtype, separate, diagonal, **options):
    form, directions = cases.curvature_case(rows, columns, width, getattr(torch, dtype), separate=separate)
    return cases.curvature_errors(form, directions, diagonal=diagonal, **options)


def curvature_in_other_units(dtype):
    (x, y, scale), directions = cases.curvature_case(70, 76, 24, getattr(torch, dtype), separate=False)
    moved = type(directions[0])(directions[0].x * 2.0**30 * 256, directions[0].y * 2.0**30 / 2048)
    return cases.curvature_errors([x * 256, y / 2048, scale * 8], (moved, moved))


def no_movement():
    from clipkit.kernels import curvature
    from clipkit.kernels.form import Form

    form, (direction, _) = cases.curvature_case(5, 7, 8, torch.float16, separate=False)
    still = type(direction)(torch.zeros_like(direction.x), torch.zeros_like(direction.y))
    lses, zeros = [torch.full((size,), 40.0) for size in (5, 7)], [torch.zeros(size) for size in (5, 7, 5, 5, 5)]
    results = curvature.curvature_products(Form.of(*form), still, still, curvature.Softmaxes(*lses, *zeros, 0))
    return [float(result.abs().sum()) for result in results]


def loss_errors(name, dtype):
    """A public loss on the Triton backend against float64: value and gradients."""
    from tests.reference.cases import BY_NAME, value_and_gradients

    case = BY_NAME[name]
    inputs, constants = case.make(70, 24, getattr(torch, dtype))
    wide = [{n: v.double() for n, v in tensors.items()} for tensors in (inputs, constants)]
    truth = value_and_gradients(case.naive, *wide)
    ours = value_and_gradients(lambda **values: case.ours(**values, backend="triton"), inputs, constants)
    return {key: cases.relative(ours[key], want) for key, want in truth.items()}


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("shape", [(70, 130, 40, 24), (65, 1, 6, 96), (1, 66, 640, 6), (64, 64, 32, 32)], ids=str)
def test_divergence_and_products_equal_float64(pool, shape, dtype):
    errors = worker.in_worker(pool, divergence_errors, *shape, dtype, (20.0, 50.0))
    assert max(errors[:2]) <= 2e-6
    assert max(errors[2:]) <= PRODUCTS[dtype]


@pytest.mark.parametrize("want_x, want_y", [(True, False), (False, True), (False, False)])
def test_only_the_products_asked_for_are_made(pool, want_x, want_y):
    wanted = {"want_x": want_x, "want_y": want_y}
    errors = worker.in_worker(pool, divergence_errors, 70, 66, 24, 24, "float32", (20.0, 50.0), **wanted)
    assert [error is None for error in errors] == [False, False, not want_x, not want_y]
    assert max(error for error in errors if error is not None) <= PRODUCTS["float32"]


def test_waves_of_rows_change_only_the_rounding(pool):
    errors = worker.in_worker(pool, divergence_errors, 200, 66, 24, 24, "float32", (20.0, 50.0), workspace_bytes=1)
    assert max(errors) <= PRODUCTS["float32"]


@pytest.mark.parametrize("dtype", PRODUCTS)
def test_identical_forms_are_exactly_zero_apart(pool, dtype):
    assert worker.in_worker(pool, identical_forms, dtype) == [0.0, 0.0, 0.0]


def test_a_divergence_far_below_the_logits_rounding_keeps_its_digits(pool):
    size, error = worker.in_worker(pool, nearly_identical_forms)
    assert size < 1e-4
    assert error <= 1e-2  # the logits are off by 4e-6, a few percent of what they differ by; LSE differences lose all


def test_logits_of_ten_thousand_and_duplicates_are_finite_and_right(pool):
    assert max(worker.in_worker(pool, huge_logits)) <= 3e-3  # fp32 rounds such logits by 5e-4


def test_nan_features_poison_the_divergence_and_both_products(pool):
    assert worker.in_worker(pool, divergence_of_poisoned) == [True, True, True]


@pytest.mark.parametrize("dtype", PRODUCTS)
def test_two_runs_give_the_same_bits(pool, dtype):
    assert worker.in_worker(pool, two_runs, dtype)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(70, 130, 40, 3), (65, 66, 6, 1)], ids=str)
def test_hessian_vector_sweeps_equal_float64(pool, shape, dtype, separate):
    """bf16 as well: the kernels only ever see fp16."""
    *shape, diagonal = shape
    errors = worker.in_worker(pool, curvature_errors, *shape, dtype, separate, diagonal)
    assert max(errors.values()) <= TOLERANCE[dtype], errors


@pytest.mark.parametrize("separate", [False, True])
def test_hessian_vector_sweeps_in_bands_and_waves(pool, separate):
    errors = worker.in_worker(pool, curvature_errors, 140, 200, 24, "float32", separate, 0, workspace_bytes=1)
    assert max(errors.values()) <= TOLERANCE["float32"], errors


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_units_of_features_and_directions_do_not_matter(pool, dtype):
    errors = worker.in_worker(pool, curvature_in_other_units, dtype)
    assert max(errors.values()) <= TOLERANCE[dtype], errors


def test_no_movement_gives_exact_zeros(pool):
    assert worker.in_worker(pool, no_movement) == [0.0, 0.0]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float16", 2e-3)])
@pytest.mark.parametrize("name", ["crd", "gd_symmetric", "gd_four_term"])
def test_losses_on_the_triton_backend_equal_float64(pool, name, dtype, tolerance):
    errors = worker.in_worker(pool, loss_errors, name, dtype)
    assert max(errors.values()) <= tolerance, errors
