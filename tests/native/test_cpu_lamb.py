# SPDX-License-Identifier: Apache-2.0
"""What the CPU's LAMB passes alone promise (the rest is in test_lamb.py): threads, bounds, layouts; and extremes."""

from __future__ import annotations

import math

import pytest
import torch

from clipkit.engine.lamb import TRUST_RULES, lamb
from tests.native.test_lamb import tensors

COUNTS = [1, 3, 15, 17, 2047, 2049, 16384, 16385, 300_000]


pytestmark = pytest.mark.usefixtures("passes")


def step(problem):
    norms, apply = lamb(problem, backend="cpu")
    apply(norms)
    return norms


def everything(problem):
    copies = problem.copies or []
    return [*problem.weights, *problem.means, *problem.variances, *copies]


def in_float64(problem):
    """(weights, moments, squares) after the first step, by the definition."""
    (beta1, beta2), results = problem.betas, []
    for w, g, lr, decay in zip(problem.weights, problem.gradients, problem.rates, problem.decays, strict=True):
        w, g = w.double(), g.double() * (1.0 if problem.multiply is None else problem.multiply.double())
        m, v = (1 - beta1) * g, (1 - beta2) * g * g
        if problem.trust == "deepspeed":
            u, rate = m / (v.sqrt() + problem.eps) + decay * w, lr * math.sqrt(1 - beta2) / (1 - beta1)
        else:
            u, rate = g / (g.abs() + problem.eps) + decay * w, lr
        squares = w.square().sum(), u.square().sum()
        ratio = float((squares[0] / squares[1]).sqrt())
        ratio = min(max(ratio, 0.01), 10.0) if problem.trust == "deepspeed" else ratio
        results.append((w - rate * ratio * u, m, v, torch.stack(squares)))
    return [list(each) for each in zip(*results, strict=True)]


@pytest.mark.parametrize("trust", TRUST_RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_step_equals_float64(trust, dtype):
    problem = tensors(COUNTS, dtype, trust=trust, multiply=torch.tensor(0.25))
    weights, means, variances, squares = in_float64(problem)
    norms = step(problem)
    torch.testing.assert_close(norms.double(), torch.stack(squares), rtol=5e-7, atol=0)
    for found, wanted in ((problem.weights, weights), (problem.means, means), (problem.variances, variances)):
        for each, reference in zip(found, wanted, strict=True):
            torch.testing.assert_close(each.double(), reference, rtol=1e-6, atol=1e-7)
    if problem.copies is not None:
        for copy, weight in zip(problem.copies, problem.weights, strict=True):
            assert torch.equal(copy, weight.to(dtype))


def test_bits_do_not_depend_on_the_number_of_threads():
    results, before = [], torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        problem = tensors(COUNTS, torch.bfloat16)
        results.append([step(problem), *everything(problem)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(ours, wanted) for ours, wanted in zip(other, results[0], strict=True))


@pytest.mark.parametrize("count", [1, 5, 15, 16, 17, 31, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_beyond_a_tensor_is_touched(count, dtype):
    """Tensors in the middle of memory full of NaN, which a lane too many would read or overwrite; without an eps, lanes
    that stand for nothing divide by zero."""
    problem = tensors([count], dtype, eps=0.0)
    lists = {}
    for name in ("weights", "gradients", "means", "variances", *(["copies"] if problem.copies else [])):
        memory = torch.full((count + 64,), torch.nan, dtype=getattr(problem, name)[0].dtype)
        memory[32 : 32 + count] = getattr(problem, name)[0]
        lists[name] = [memory]
    norms = step(problem._replace(**{name: [memory[32 : 32 + count]] for name, (memory,) in lists.items()}))
    assert norms.isfinite().all()
    for (memory,) in lists.values():
        assert memory[:32].isnan().all()
        assert memory[32 : 32 + count].isfinite().all()
        assert memory[32 + count :].isnan().all()


@pytest.mark.parametrize("trust", TRUST_RULES)
def test_extreme_gradients(trust):
    """Zeros, denormals, and numbers whose squares nearly overflow leave finite weights; infinity shows."""
    gradient = torch.tensor([0.0, 1e-45, -1e-40, 1e-20, 1.0, -1e18, 1e19]).repeat(30)
    problem = tensors([len(gradient)], gradients=[gradient], trust=trust)
    before = problem.weights[0].clone()
    step(problem)
    assert problem.weights[0].isfinite().all()
    moved = (problem.weights[0] - before).abs()
    assert 0 < moved.max() <= 1.0, "Adam's direction is bounded whatever the gradient's size"
    zero = tensors([40], gradients=[torch.zeros(40)], decays=[0.0], trust=trust)
    before = zero.weights[0].clone()
    step(zero)
    assert torch.equal(zero.weights[0], before)
    infinite = tensors([40], gradients=[torch.full((40,), torch.inf)], trust=trust)
    step(infinite)
    assert infinite.weights[0].isnan().any()


def test_a_skipped_step_writes_nothing():
    problem = tensors(COUNTS, torch.bfloat16, skip=torch.ones(()))
    problem.gradients[0].fill_(torch.nan)
    before = [each.clone() for each in everything(problem)]
    step(problem)
    assert all(torch.equal(each, old) for each, old in zip(everything(problem), before, strict=True))


def test_dimensions_in_any_order_are_updated_where_they_lie():
    """A channels-last kernel and a transposed matrix, each with a gradient laid out in another way."""
    plain, turned = tensors([120, 60]), tensors([120, 60])
    layouts = [((2, 3, 4, 5), (0, 2, 3, 1)), ((5, 12), (1, 0))]

    def lay_out(tensor, shape, order):
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return tensor.view(shape).permute(order).contiguous().permute(inverse)

    lists = {
        name: [lay_out(each, *layout) for each, layout in zip(getattr(turned, name), layouts, strict=True)]
        for name in ("weights", "means", "variances")
    }
    gradients = [each.view(shape) for each, (shape, _) in zip(turned.gradients, layouts, strict=True)]
    step(plain)
    step(turned._replace(**lists, gradients=gradients))
    for found, wanted in zip(lists["weights"], plain.weights, strict=True):
        torch.testing.assert_close(found.reshape(-1), wanted, rtol=1e-6, atol=1e-7)


def test_arguments_that_cannot_be_are_refused(native):
    arguments = [1, "float32", 0, 0, 0, 0, 0, 0.9, 0.98, 1e-6, 0, 1]
    native.cpu_lamb(*arguments)
    for position, bad, complaint in (
        (0, 3, "phase"), (1, "float64", "dtype"), (3, -1, "tensor_count"), (3, 1, "tensors: got a null"),
        (7, 1.0, "beta1"), (8, -0.1, "beta2"), (10, 3, "rule"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=complaint):
            native.cpu_lamb(*arguments[:position], bad, *arguments[position + 1 :])
