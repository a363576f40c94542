# SPDX-License-Identifier: Apache-2.0
"""Distillation's sweeps on a card: the interpreter's cases, bf16 as well, sizes of real batches; equal bits twice."""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import two_form_cases as cases

# (N, M, d, teacher's d): whole tiles; ragged; a width that is no multiple of a load; below one tile.
SHAPES = [(2048, 2048, 512, 768), (1000, 1099, 640, 384), (300, 2049, 666, 66), (1, 66, 6, 96)]
PRODUCTS = {torch.float32: 6e-5, torch.float16: 8e-4, torch.bfloat16: 5e-3}
CURVATURE = {torch.float32: 2e-5, torch.float16: 8e-4, torch.bfloat16: 8e-4}


@pytest.fixture(autouse=True)
def _triton():
    pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")


def on_card(forms):
    return [tensor.cuda() for tensor in forms]


@pytest.mark.parametrize("dtype", PRODUCTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_divergence_and_products_equal_float64(shape, dtype):
    forms = cases.two_forms(*shape, dtype, (20.0, 50.0))
    want, got = cases.exact_divergence(forms), cases.kernel_divergence(on_card(forms))
    lines = sum(shape[:2])
    for ours, truth in zip(got[:2], want[:2], strict=True):
        assert float((ours.cpu().double() - truth).abs()) <= 4e-6 * (float(truth) + lines)
    for ours, truth in zip(got[2:], want[2:], strict=True):
        assert cases.relative(ours, truth) <= PRODUCTS[dtype]


@pytest.mark.parametrize("dtype", PRODUCTS, ids=str)
def test_identical_forms_are_exactly_zero_apart(dtype):
    x, y, scale, *_ = on_card(cases.two_forms(700, 900, 512, 512, dtype, (100.0, 100.0)))
    divergence, _, g_y, gt_x = cases.kernel_divergence([x, y, scale, x, y, scale])
    assert not divergence
    assert not g_y.any()
    assert not gt_x.any()


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("dtype", CURVATURE, ids=str)
@pytest.mark.parametrize("shape", [(2048, 2048, 512, 0), (1000, 1099, 640, 66), (66, 130, 6, 3)], ids=str)
def test_hessian_vector_sweeps_equal_float64(shape, dtype, separate):
    *shape, diagonal = shape
    form, directions = cases.curvature_case(*shape, dtype, separate=separate, device="cuda")
    errors = cases.curvature_errors(form, directions, diagonal=diagonal)
    assert max(errors.values()) <= CURVATURE[dtype], errors


@pytest.mark.parametrize("dtype", PRODUCTS, ids=str)
def test_two_runs_give_the_same_bits(dtype):
    forms = on_card(cases.two_forms(3000, 3100, 512, 256, dtype, (60.0, 30.0)))
    first, second = (cases.kernel_divergence(forms, workspace_bytes=4 << 20) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("separate", [False, True])
def test_nothing_waits_for_the_device(separate):
    from clipkit.kernels import curvature
    from clipkit.kernels.form import Form

    forms = on_card(cases.two_forms(256, 256, 64, 64, torch.bfloat16, (60.0, 30.0)))
    form, directions = cases.curvature_case(256, 256, 64, torch.bfloat16, separate=separate, device="cuda")
    row, column = torch.full((256,), 40.0, device="cuda"), torch.full((256,), 40.0, device="cuda")

    def sweeps():
        cases.kernel_divergence(forms)
        means = curvature.curvature_sums(Form.of(*form), *directions, row_lse=row, column_lse=column, diagonal=0)
        softmaxes = curvature.Softmaxes(row, column, *means, row, column, row, 0)
        curvature.curvature_products(Form.of(*form), *directions, softmaxes)

    sweeps()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sweeps()
    finally:
        torch.cuda.set_sync_debug_mode("default")
