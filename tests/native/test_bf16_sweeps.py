# SPDX-License-Identifier: Apache-2.0
"""Whole sweeps of the exponential family on bf16 towers, by every instruction set at hand."""

import pytest
import torch

import clipkit
from clipkit.engine.cpu_backend.exponential import anchor_statistics, exponential_products, log_sum_exps
from tests.reference import naive
from tests.reference.cases import value_and_gradients
from tests.reference.naive import unit

SHAPES = [(1, 1, 1), (1, 130, 6), (63, 65, 96), (700, 33, 32), (127, 1100, 40), (1200, 1300, 8)]
"""(rows, columns, width): one tile and several, one band of columns and several, ragged everywhere."""


@pytest.fixture(params=["amx", "avx512_bf16"])
def kernel(request, native, monkeypatch):
    if request.param not in native.bf16_kernels():
        pytest.skip(f"this processor or compiler has no {request.param}")
    monkeypatch.setattr("clipkit.engine.cpu_backend.exponential.bf16_kernel", lambda dtype: request.param)
    return request.param


def towers(rows, columns, width):
    return unit(rows, width, 0, torch.bfloat16), unit(columns, width, 1, torch.bfloat16)


def exact_logits(x, y, scale, diagonal=None):
    logits = scale * x.double() @ y.double().T
    positives = torch.arange(len(y)) == torch.arange(len(x))[:, None] + (len(y) if diagonal is None else diagonal)
    return logits, positives


@pytest.mark.parametrize("rows, columns, width", SHAPES)
@pytest.mark.parametrize("diagonal", [None, 0, 40, -700])
def test_log_sum_exps_equal_float64(kernel, rows, columns, width, diagonal):
    x, y = towers(rows, columns, width)
    logits, positives = exact_logits(x, y, 60.0, diagonal)
    logits = logits.masked_fill(positives, -torch.inf)
    row, column = log_sum_exps(x, y, 60.0, diagonal=diagonal)
    torch.testing.assert_close(row.double(), logits.logsumexp(1), rtol=0, atol=3e-5)
    torch.testing.assert_close(column.double(), logits.logsumexp(0), rtol=0, atol=3e-5)


@pytest.mark.parametrize("rows, columns, width", SHAPES)
@pytest.mark.parametrize("diagonal", [0, 40, -700])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_products_equal_float64(kernel, rows, columns, width, diagonal, wanted):
    x, y = towers(rows, columns, width)
    logits, positives = exact_logits(x, y, 20.0, diagonal)
    row_offset, column_offset, weight = logits.logsumexp(1), logits.logsumexp(0), -torch.rand(rows).double()
    exact = (logits - row_offset[:, None]).exp() + (logits - column_offset).exp()
    exact = torch.where(positives, weight[:, None], exact)
    offsets = {"row_offset": row_offset.float(), "column_offset": column_offset.float()}
    weights = {"diagonal": diagonal, "diagonal_weight": weight.float()}
    wants = dict(zip(("want_x", "want_y"), wanted, strict=True))
    results = exponential_products(x, y, 20.0, **offsets, **weights, **wants)
    for wants_it, result, left, right in zip(wanted, results, (exact, exact.T), (y, x), strict=True):
        if not wants_it:
            assert result is None
            continue
        # Each weight is within half a bf16 step of its own size, 2^-8, and within what fp32 leaves of an exponential.
        bound = (2**-8 + 2e-5) * (left.abs() @ right.double().abs()) + 1e-7
        assert ((result.double() - left @ right.double()).abs() <= bound).all()


@pytest.mark.parametrize("rows, columns, width", SHAPES)
@pytest.mark.parametrize("diagonal", [None, 40, -700])
def test_anchor_statistics_equal_float64(kernel, rows, columns, width, diagonal):
    x, y = towers(rows, columns, width)
    scale = torch.linspace(-60.0, 100.0, rows)
    products, positives = exact_logits(x, y, 1.0, diagonal)
    logits = (scale.double()[:, None] * products).masked_fill(positives, -torch.inf)
    lse, mean = anchor_statistics(x, y, scale, diagonal=diagonal)
    torch.testing.assert_close(lse.double(), logits.logsumexp(1), rtol=0, atol=3e-5)
    exact = torch.where(positives.all(1), 0.0, (logits.softmax(1) * products.masked_fill(positives, 0.0)).sum(1))
    torch.testing.assert_close(mean.double(), exact, rtol=0, atol=1e-5)


def test_one_and_more_threads_give_the_same_bits(kernel):
    x, y = towers(1700, 1500, 40)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5, 2):
            torch.set_num_threads(count)
            row, column = log_sum_exps(x, y, 50.0, diagonal=3)
            offsets = {"row_offset": row, "column_offset": column, "diagonal": 3, "diagonal_weight": -torch.ones(1700)}
            products = exponential_products(x, y, 50.0, **offsets, want_x=True, want_y=True)
            lines = {"row_scale": torch.linspace(0.5, 1.0, 1700), "column_scale": torch.linspace(1.0, -0.5, 1500)}
            scaled = exponential_products(x, y, 50.0, **offsets, **lines, want_x=True, want_y=True)
            anchors = anchor_statistics(x, y, 50.0 * lines["row_scale"], diagonal=3)
            results.append((row, column, *products, *scaled, *anchors))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


def cone(rows, width, seed, cosine):
    """Features whose cosines are about this."""
    axis = torch.eye(width, dtype=torch.float64)[0] * (cosine / (1.0 - cosine)) ** 0.5
    return torch.nn.functional.normalize(axis + unit(rows, width, seed), dim=1).bfloat16()


@pytest.mark.parametrize("diagonal", [0, 40, -700])
def test_weights_of_positives_are_not_rounded(kernel, diagonal):
    """With nothing but positives the products are fp32's."""
    x, y = towers(700, 1100, 40)
    offsets = {"row_offset": torch.full((700,), 1e4), "column_offset": None}
    weight = -torch.rand(700, generator=torch.Generator().manual_seed(2))
    diagonals = {"diagonal": diagonal, "diagonal_weight": weight}
    g_y, gt_x = exponential_products(x, y, 20.0, **offsets, **diagonals, want_x=True, want_y=True)
    own = exact_logits(x, y, 1.0, diagonal)[1] * weight.double()[:, None]
    torch.testing.assert_close(g_y.double(), own @ y.double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gt_x.double(), own.T @ x.double(), rtol=1e-6, atol=1e-9)


def test_rows_far_below_their_tile_are_not_lost(kernel):
    """At scale 1000 most logits lie hundreds of nats under the largest of their tile and of their neighbours' tiles."""
    x, y = towers(600, 700, 16)
    x[::7] *= -1
    y[300:] *= 0.01
    logits, _ = exact_logits(x, y, 1000.0)
    row, column = log_sum_exps(x, y, 1000.0, diagonal=None)
    torch.testing.assert_close(row.double(), logits.logsumexp(1), rtol=0, atol=4e-4)
    torch.testing.assert_close(column.double(), logits.logsumexp(0), rtol=0, atol=4e-4)


def test_nan_reaches_its_row_and_every_column(kernel):
    x, y = towers(600, 550, 8)
    x[555, 3] = torch.nan
    row, column = log_sum_exps(x, y, 10.0, diagonal=0)
    assert row.isnan().nonzero().flatten().tolist() == [555]
    assert column.isnan().all()


def test_views_with_any_strides(kernel):
    wide = unit(300, 90, 0, torch.bfloat16)
    for x in (wide[::3, 1:41], wide.T[:40].T[:100], wide[:1, :40].expand(100, -1)):
        y = unit(70, 40, 1, torch.bfloat16)
        for mine, other in zip(
            log_sum_exps(x, y, 9.0, diagonal=0),
            log_sum_exps(x.contiguous(), y, 9.0, diagonal=0),
            strict=True,
        ):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_gradients_of_clip_loss_are_as_good_as_their_type(native, scale, monkeypatch):
    """Rounding weights to bf16 may cost no more than rounding the gradients to bf16 does."""
    if not native.bf16_kernels():
        pytest.skip("this processor or compiler multiplies no bf16")
    text = unit(1100, 64, 0)
    image = torch.nn.functional.normalize(text + 1.7 * unit(1100, 64, 1), dim=1)
    pair = {"image": image.bfloat16(), "text": text.bfloat16()}
    exact = value_and_gradients(naive.clip, {k: v.double() for k, v in pair.items()}, {"scale": scale})
    for kernel in native.bf16_kernels():
        monkeypatch.setattr("clipkit.engine.cpu_backend.exponential.bf16_kernel", lambda dtype, name=kernel: name)
        ours = value_and_gradients(lambda image, text: clipkit.clip_loss(image, text, scale), pair, {})
        assert abs(ours["loss"].double() - exact["loss"]) <= 1e-5 * max(1.0, exact["loss"].item())
        for name in pair:
            rounding = (exact[name].bfloat16().double() - exact[name]).norm()
            assert (ours[name].double() - exact[name]).norm() <= 1.3 * rounding


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("loss", ["clip", "info_nce"])
def test_gradients_in_a_cone_are_as_good_as_their_type(native, cosine, loss):
    if not native.bf16_kernels():
        pytest.skip("this processor or compiler multiplies no bf16")
    pair = {"image": cone(700, 64, 1, cosine), "text": cone(700, 64, 2, cosine)}
    ours = {"clip": clipkit.clip_loss, "info_nce": clipkit.info_nce}[loss]
    exact = value_and_gradients(
        lambda image, text: (
            naive.clip(image, text, 50.0)
            if loss == "clip"
            else torch.nn.functional.cross_entropy(50.0 * image @ text.T, torch.arange(700))
        ),
        {k: v.double() for k, v in pair.items()},
        {},
    )
    found = value_and_gradients(lambda image, text: ours(image, text, 50.0, backend="cpu"), pair, {})
    for name in pair:
        rounding = (exact[name].bfloat16().double() - exact[name]).norm()
        assert (found[name].double() - exact[name]).norm() <= 1.3 * rounding, name
