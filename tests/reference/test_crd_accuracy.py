# SPDX-License-Identifier: Apache-2.0
"""The distillation loss is right to its own size, from 10 nats down to 1e-9, and never negative: its terms are not."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import clipkit
from tests.reference import naive
from tests.reference.cases import value_and_gradients
from tests.reference.naive import unit

ROWS, WIDTH = 300, 64
BACKENDS = pytest.mark.parametrize("backend", ["torch", None])


def _near(distance: float) -> tuple[torch.Tensor, ...]:
    """Student and teacher features in fp32, each student row about `distance` away from its teacher's."""
    to_image = unit(ROWS, WIDTH, 1)
    to_text = F.normalize(to_image + 1.5 * unit(ROWS, WIDTH, 2), dim=1)
    image, text = (
        F.normalize(teacher + distance * unit(ROWS, WIDTH, seed), dim=1)
        for seed, teacher in ((3, to_image), (4, to_text))
    )
    return image.float(), text.float(), to_image.float(), to_text.float()


def _losses(features: tuple[torch.Tensor, ...], scale: float, backend: str | None) -> tuple[float, float]:
    """(ours in fp32, the definition in float64 on the same inputs)."""
    image, text, to_image, to_text = features
    ours = clipkit.crd_loss(image, text, scale, to_image, to_text, scale, backend=backend)
    wide = [value.double() for value in features]
    return ours.item(), naive.crd(wide[0], wide[1], scale, wide[2], wide[3], scale).item()


@BACKENDS
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_relative_error_in_fp32_whatever_the_size_of_the_loss(scale, backend):
    """A logit of size `scale` is rounded by up to scale · 6e-8: relative to the loss that shows as in `bound`."""
    sizes = []
    for distance in (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 3.0):
        ours, exact = _losses(_near(distance), scale, backend)
        if exact < 1e-9:
            continue
        sizes.append(exact)
        bound = 5e-6 if exact > 1e-3 else 1e-4 if exact > 1e-5 else 1e-3
        assert abs(ours / exact - 1) < bound, f"{exact:.1e} nats, distance {distance}: {ours / exact - 1:.1e}"
    assert min(sizes) < 2e-8


@BACKENDS
def test_never_negative(backend):
    """A difference of means would be, half the time, where student and teacher agree to the last bits."""
    features = _near(0.0)
    for seed in range(20):
        noise = 1e-7 * unit(ROWS, WIDTH, 10 + seed, torch.float32)
        ours, exact = _losses((features[0] + noise, *features[1:]), 100.0, backend)
        assert 0.0 <= ours < 1e-9 + 10 * exact


@BACKENDS
def test_unnormalised_logits_and_a_student_that_contradicts_its_teacher(backend):
    """Logits of ±1e4: ratios of probabilities beyond any exponent, where e^r is infinite and P, Pt are zero."""
    generator = torch.Generator().manual_seed(0)
    features = tuple(torch.randn(40, 8, generator=generator) * 50 for _ in range(4))
    ours, exact = _losses(features, 1.0, backend)
    assert exact > 1e3
    assert ours == pytest.approx(exact, rel=1e-6)
    leaves = dict(zip("ab", features[:2], strict=True))
    gradients = value_and_gradients(
        lambda a, b: clipkit.crd_loss(a, b, 1.0, *features[2:], 1.0, backend=backend), leaves, {}
    )
    wide = [value.double() for value in features]
    truth = value_and_gradients(
        lambda a, b: naive.crd(a, b, 1.0, *wide[2:], 1.0), {name: value.double() for name, value in leaves.items()}, {}
    )
    for name in leaves:
        torch.testing.assert_close(gradients[name].double(), truth[name], rtol=1e-4, atol=1e-4)


@BACKENDS
def test_a_batch_of_one_has_nothing_to_tell_apart_and_nan_stays_nan(backend):
    one = torch.ones(1, 4)
    assert clipkit.crd_loss(one, one, 50.0, -one, one, 70.0, backend=backend).item() == 0.0
    features = list(_near(0.1))
    features[0] = features[0].index_fill(0, torch.tensor([7]), torch.nan)
    assert clipkit.crd_loss(*features[:2], 9.0, *features[2:], 9.0, backend=backend).isnan()


def test_the_softmax_teacher_cross_entropy_is_the_kl_plus_the_teachers_entropy():
    image, text, to_image, to_text = (value.double() for value in _near(0.5))
    ours = clipkit.functional.soft_target_cross_entropy(image, text, 20.0, to_image, to_text, 30.0)
    student, teacher = 20.0 * image @ text.T, 30.0 * to_image @ to_text.T
    truth = sum(F.cross_entropy(s, t.softmax(1)) for s, t in ((student, teacher), (student.T, teacher.T))) / 2
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=0)
