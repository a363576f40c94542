# SPDX-License-Identifier: Apache-2.0
"""The sweeps with a scale of its own for every anchor, against the naive form in float64."""

from __future__ import annotations

import pytest
import torch

from clipkit.engine import cpu_backend, sweeps
from tests.reference.naive import unit

BACKENDS = ["torch"] + ["cpu"] * (cpu_backend.obstacle(torch.device("cpu"), torch.float32) is None)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 1), (1, 130, 6), (63, 65, 96), (127, 1100, 40), (700, 33, 32), (1200, 1300, 8), (5, 0, 3), (0, 5, 3)]

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def towers(rows, columns, width, dtype=torch.float32):
    return unit(rows, width, 0, dtype), unit(columns, width, 1, dtype)


def scales(count, low, high, like):
    return torch.linspace(low, high, max(count, 1))[:count].to(
        torch.float64 if like.dtype == torch.float64 else torch.float32
    )


def naive_anchors(x, y, scale, diagonal):
    """The whole matrix at once; a row with nothing left has the mean 0."""
    products = x.double() @ y.double().T
    logits = scale.double().reshape(-1, 1) * products
    if diagonal is not None:
        own = torch.arange(len(y)) == torch.arange(len(x))[:, None] + diagonal
        logits, products = logits.masked_fill(own, -torch.inf), products.masked_fill(own, 0.0)
    lse = logits.logsumexp(1)
    mean = ((logits - lse[:, None].where(lse[:, None] != -torch.inf, 0.0)).exp() * products).sum(1)
    return lse, mean


def serving(backend, dtype):
    if backend == "cpu" and dtype == torch.float64:
        pytest.skip("float64 is plain torch's")
    return backend


@every_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("diagonal", [None, 0, 40, -30])
@pytest.mark.parametrize("shape", SHAPES)
def test_anchor_statistics_equal_the_naive_form(backend, dtype, shape, diagonal):
    x, y = towers(*shape, dtype)
    scale = scales(len(x), 5.0, 100.0, x)
    lse, mean = sweeps.anchor_statistics(x, y, scale, diagonal=diagonal, backend=serving(backend, dtype))
    exact_lse, exact_mean = naive_anchors(x, y, scale, diagonal)
    tiny = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(lse.double(), exact_lse, rtol=0, atol=40 * tiny)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=0, atol=40 * tiny)


@every_backend
@pytest.mark.parametrize("scale", [-200.0, 0.0, 1e-20, 100.0, 200.0])
@pytest.mark.parametrize("kind", ["cosine", "unnormalised", "duplicates", "far rows"])
def test_anchor_statistics_at_extremes(backend, scale, kind):
    """Logits of up to 1e4: rounding them to fp32 moves a log-sum-exp by 5e-4 and a mean by as much of itself."""
    x, y = towers(150, 170, 16)
    if kind == "unnormalised":
        x, y = x * 7.0, y * 7.0
    if kind == "duplicates":
        x, y = x[torch.arange(150) // 7], y[torch.arange(170) // 7]
    if kind == "far rows":  # every logit of some rows lies hundreds of nats under its neighbours'
        y[:] = torch.nn.functional.normalize(y * 0.1 + y[:1], dim=1)
        x[:] = y[:150]
        x[::3] *= -1.0
    lse, mean = sweeps.anchor_statistics(x, y, torch.tensor(scale), diagonal=2, backend=backend)
    exact_lse, exact_mean = naive_anchors(x, y, torch.tensor(scale), 2)
    logits = float((scale * x.double() @ y.double().T).abs().max())
    products = float((x.double() @ y.double().T).abs().max())
    torch.testing.assert_close(lse.double(), exact_lse, rtol=0, atol=4e-7 * max(logits, 10.0))
    assert float((mean.double() - exact_mean).abs().max()) <= 4e-7 * max(logits, 10.0) * products


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_with_all_its_mass_on_one_column_is_that_product(backend, dtype):
    """Also when its logit is 1e4: e^(s - lse) would then be wrong by 5e-4, the product is exact."""
    x, y = towers(70, 90, 24, dtype)
    x, y = x * 16, y * 16
    products = x.float() @ y.float().T
    top = products.topk(2, dim=1).values
    sharp = top[:, 0] - top[:, 1] > 1.0
    assert sharp.any()
    _, mean = sweeps.anchor_statistics(x, y, torch.tensor(100.0), diagonal=None, backend=backend)
    torch.testing.assert_close(mean[sharp], top[sharp, 0], rtol=3e-7, atol=0)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_anchor_statistics_of_a_lone_pair_are_empty(backend, dtype):
    x, y = towers(1, 1, 8, dtype)
    lse, mean = sweeps.anchor_statistics(x, y, torch.tensor(100.0), diagonal=0, backend=backend)
    assert (float(lse), float(mean)) == (-torch.inf, 0.0)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_reaches_the_rows_that_read_it(backend, dtype):
    x, y = towers(200, 300, 8, dtype)
    x[5, 2] = torch.nan
    lse, mean = sweeps.anchor_statistics(x, y, torch.tensor(9.0), diagonal=0, backend=backend)
    assert lse.isnan().nonzero().flatten().tolist() == mean.isnan().nonzero().flatten().tolist() == [5]
    y[7, 1] = torch.nan
    lse, mean = sweeps.anchor_statistics(x, y, torch.tensor(9.0), diagonal=0, backend=backend)
    # Row 7 leaves column 7 out.
    assert (~lse.isnan()).nonzero().flatten().tolist() == (~mean.isnan()).nonzero().flatten().tolist() == [7]


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_anchors_do_not_know_their_neighbours(backend, dtype):
    """Permuting columns changes sums by their rounding alone, permuting rows permutes them, rows alone are the same."""
    x, y = towers(600, 700, 12, dtype)
    scale, order = scales(600, -20.0, 90.0, x), torch.randperm(600, generator=torch.Generator().manual_seed(3))
    across = torch.randperm(700, generator=torch.Generator().manual_seed(4))
    results = sweeps.anchor_statistics(x, y, scale, diagonal=None, backend=backend)
    for moved in (
        sweeps.anchor_statistics(x, y[across], scale, diagonal=None, backend=backend),
        [
            part[order.argsort()]
            for part in sweeps.anchor_statistics(x[order], y, scale[order], diagonal=None, backend=backend)
        ],
        [
            torch.cat(parts)
            for parts in zip(
                *(
                    sweeps.anchor_statistics(x[rows], y, scale[rows], diagonal=None, backend=backend)
                    for rows in (slice(0, 77), slice(77, 600))
                ),
                strict=True,
            )
        ],
    ):
        for mine, other in zip(results, moved, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=2e-6)


def products(x, y, scale, backend, *, want_x=True, want_y=True, **lines):
    """G Y and Gᵀ X at the offsets of float64, and the two of the naive form."""
    wide = float(torch.tensor(scale)) * x.double() @ y.double().T
    terms = []
    for name, dim in (("row", 1), ("column", 0)):
        lines.setdefault(f"{name}_scale", None)
        multiplier = lines[f"{name}_scale"]
        s = wide if multiplier is None else wide * multiplier.double().unsqueeze(dim)
        lines[f"{name}_offset"] = s.logsumexp(dim).to(scales(0, 0, 0, x).dtype)
        terms.append((s - lines[f"{name}_offset"].double().unsqueeze(dim)).exp())
    weight = scales(len(x), -1.0, -1e-6, x)
    own = torch.arange(len(y)) == torch.arange(len(x))[:, None] + 1
    g = torch.where(own, weight[:, None].double(), terms[0] + terms[1])
    results = sweeps.exponential_products(
        x,
        y,
        torch.tensor(scale).to(weight.dtype),
        **lines,
        diagonal=1,
        diagonal_weight=weight,
        want_x=want_x,
        want_y=want_y,
        backend=backend,
    )
    return results, ((g, y), (g.T, x))


@every_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape", [(1, 130, 6), (63, 65, 96), (127, 1100, 40), (1100, 1300, 8)])
@pytest.mark.parametrize("which", ["rows", "columns", "both"])
def test_products_with_scales_of_lines_equal_the_naive_form(backend, dtype, wanted, shape, which):
    x, y = towers(*shape, dtype)
    lines = {"row_scale": scales(len(x), -0.5, 2.0, x) if which != "columns" else None}
    lines["column_scale"] = scales(len(y), 1.5, 0.25, x) if which != "rows" else None
    results, factors = products(
        x, y, 40.0, serving(backend, dtype), want_x=wanted[0], want_y=wanted[1], **lines
    )  # fmt: skip
    step = {torch.float64: 1e-12, torch.bfloat16: 2**-8 + 4e-5}.get(dtype, 4e-5)  # bf16 weights may be rounded
    for wants, result, (left, right) in zip(wanted, results, factors, strict=True):
        assert (result is not None) == wants
        if result is not None:
            bound = step * (left.abs() @ right.double().abs()) + 1e-7 * (dtype != torch.float64) + 1e-13
            assert ((result.double() - left @ right.double()).abs() <= bound).all()


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_scale_for_all_lines_is_the_scale(backend, dtype):
    """To the bit: the factor of a line is made before it multiplies a product."""
    x, y = towers(300, 500, 24, dtype)
    s = 33.0 * x.double() @ y.double().T
    common = {"row_offset": s.logsumexp(1).float(), "column_offset": s.logsumexp(0).float()}
    common |= {"diagonal": 0, "diagonal_weight": -torch.ones(300), "backend": backend}
    for outer, line in ((33.0, 1.0), (44.0, 0.75)):
        lines = {"row_scale": torch.full((300,), line), "column_scale": torch.full((500,), line)}
        mine = sweeps.exponential_products(x, y, torch.tensor(outer), **lines, **common)
        plain = sweeps.exponential_products(x, y, torch.tensor(33.0), **common)
        assert all(torch.equal(a, b) for a, b in zip(mine, plain, strict=True))
    same = sweeps.anchor_statistics(x, y, torch.full((300,), 33.0), diagonal=0, backend=backend)
    plain = sweeps.anchor_statistics(x, y, torch.tensor(33.0), diagonal=0, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(same, plain, strict=True))
