# SPDX-License-Identifier: Apache-2.0
"""S kept instead of computed again, by Triton's interpreter: the same results, within the memory granted, and only
where the arithmetic says that it pays.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from tests.interpreter import interpreter_worker as worker
from tests.interpreter import sweep_cases as cases

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")

DTYPES = [torch.float32, torch.float16]


@pytest.fixture(scope="module")
def pool():
    with worker.start() as executor:
        yield executor


# What follows down to the first test runs in the interpreter's process.


def statistics_and_products(dtype, rows, columns, width, keep, workspace_bytes):
    """(row LSEs, column LSEs, G Y, Gᵀ X), S kept in between or computed twice; and how far what was kept is from S."""
    from clipkit.kernels.exponential_products import exponential_products
    from clipkit.kernels.form import Form
    from clipkit.kernels.kept import unwritten
    from clipkit.kernels.row_col_lse import row_col_lse

    x, y, scale = cases.towers("cone", rows, columns, width, dtype)
    kept = unwritten(Form.of(x, y, scale), rows) if keep else None
    budget = {"workspace_bytes": workspace_bytes}
    row, column = row_col_lse(x, y, scale, diagonal=3, kept=kept, **budget)
    terms = {"row_offset": row, "column_offset": column, "own_weight": -torch.ones(rows), "diagonal": 3}
    products = exponential_products(x, y, scale, **terms, kept=kept, **budget)
    gap = 0.0 if kept is None else float((kept - x.double() @ y.double().T).abs().max())
    return row, column, *products, gap


def softmax(arguments, flops_per_byte, workspace_bytes=1 << 20):
    """The sweep's results on a card that multiplies so many times while its memory moves a byte, and the memory that S
    and weights took.
    """
    from clipkit.kernels import kept, softmax_products, waves

    taken = [0]
    own, heights = softmax_products.unwritten, waves.wave_rows

    def unwritten(form, rows):
        memory = own(form, rows)
        taken[0] += memory.untyped_storage().nbytes()
        return memory

    def wave_rows(form, **options):
        slices = list(heights(form, **options))
        highest = max(rows.stop - rows.start for rows in slices)
        taken[0] += highest * waves.pitch(form.columns, form.x.dtype) * form.x.itemsize
        return iter(slices)

    with (
        mock.patch.dict(kept.FLOPS_PER_BYTE, dict.fromkeys(kept.FLOPS_PER_BYTE, flops_per_byte)),
        mock.patch.object(softmax_products, "unwritten", unwritten),
        mock.patch.object(waves, "wave_rows", wave_rows),
    ):
        results = softmax_products.softmax_products(**arguments, workspace_bytes=workspace_bytes)
    return results, taken[0]


KEEPS, COMPUTES_AGAIN = 0, 1e9


def keeping_pays(dtype, width, precision="ieee"):
    from clipkit.kernels import kept

    return kept.keeping_pays(torch.empty(2, width, dtype=dtype), precision)


def clip(dtype, width, workspace):
    """(loss, gradients of the towers) with so many bytes for S, and whether the weights were made of what was kept."""
    from clipkit.kernels import exponential_products

    from clipkit.functional import clip_loss

    x, y, scale = cases.towers("learned", 70, 70, width, dtype)
    x, y = x.requires_grad_(), y.requires_grad_()
    write = exponential_products.write_exponential_weights
    with mock.patch.object(exponential_products, "write_exponential_weights", wraps=write) as spy:
        loss = clip_loss(x, y, scale, workspace=workspace, backend="triton")
    loss.backward()
    return loss.detach(), x.grad, y.grad, {call.args[-1] is not None for call in spy.call_args_list}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("workspace_bytes", [1, 1 << 20])
def test_statistics_and_products_of_kept_logits_are_those_of_computed_ones(pool, dtype, workspace_bytes):
    arguments = (dtype, 140, 151, 40)
    *kept, gap = worker.in_worker(pool, statistics_and_products, *arguments, True, workspace_bytes)
    *computed, _ = worker.in_worker(pool, statistics_and_products, *arguments, False, workspace_bytes)
    assert gap <= 1e-6
    for one, other in zip(kept, computed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("want_y", [False, True])
def test_softmax_sweep_from_kept_logits_is_the_same_within_the_workspace(pool, dtype, want_y):
    x, y, scale = cases.towers("cone", 300, 150, 40, dtype)
    labels = torch.arange(300) % 150
    positive = scale * (x.float() * y[labels].float()).sum(1)
    arguments = {"x": x, "y": y, "scale": scale, "labels": labels, "positive": positive, "want_x": True}
    budget = 1 << 17
    (kept, taken), (computed, _) = (
        worker.in_worker(pool, softmax, arguments | {"want_y": want_y}, flops, budget)
        for flops in (KEEPS, COMPUTES_AGAIN)
    )
    assert budget / 2 < taken <= budget
    for one, other in zip(kept, computed, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("dtype, width", [(torch.float32, 96), (torch.float16, 1100)])
@pytest.mark.parametrize("data", ["unit", "huge", "learned"])
def test_detached_keys_equal_float64_where_logits_are_kept(pool, data, dtype, width):
    assert worker.in_worker(pool, keeping_pays, dtype, width)
    arguments = cases.softmax(data, 70, 131, width, dtype) | {"want_y": False}
    ours, torchs = (
        worker.in_worker(pool, cases.relative_errors, "softmax_sweep", arguments, backend=backend)
        for backend in ("triton", "torch")
    )
    for mine, peer in zip(ours, torchs, strict=True):
        assert mine is None or mine <= 2 * peer + cases.TOLERANCE[dtype]


def test_a_nan_poisons_its_own_row_of_kept_logits(pool):
    arguments = cases.softmax("unit", 130, 70, 96, torch.float32) | {"want_y": False}
    arguments["x"][66, 0] = torch.nan
    _, g_y = worker.in_worker(pool, cases.results, "softmax_sweep", arguments)
    assert g_y.isnan().any(1).nonzero().flatten().tolist() == [66]


@pytest.mark.parametrize("dtype, width", [(torch.float32, 96), (torch.float16, 1100)])
def test_clip_loss_keeps_its_logits_where_they_fit_the_workspace(pool, dtype, width):
    size = 4 * 70 * 70
    *kept, was_kept = worker.in_worker(pool, clip, dtype, width, size)
    *computed, too_small = worker.in_worker(pool, clip, dtype, width, size - 1)
    assert (was_kept, too_small) == ({True}, {False})
    for one, other in zip(kept, computed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3 if dtype == torch.float16 else 1e-5, atol=1e-7)
    *_, in_narrow = worker.in_worker(pool, clip, dtype, 64, size)
    assert in_narrow == {False}


def test_logits_are_kept_where_moving_them_is_faster_than_computing_them(pool):
    def pays(*arguments):
        return worker.in_worker(pool, keeping_pays, *arguments)

    assert [pays(torch.float16, width) for width in (512, 768, 1024, 1280)] == [False, False, False, True]
    assert pays(torch.float32, 512, "ieee")
    assert pays(torch.float32, 512, "tf32x3")
    assert not pays(torch.float32, 512, "tf32")
    assert not pays(torch.float32, 64, "ieee")
