# SPDX-License-Identifier: Apache-2.0
"""Sixteen-bit and fp32 inputs against float64 on the same rounded inputs: logits are never rounded, tiny losses
survive.
"""

from __future__ import annotations

import math

import pytest
import torch

import clipkit
from tests.reference import naive
from tests.reference.cases import BY_NAME, CASES, value_and_gradients
from tests.reference.naive import unit

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}
"""Largest relative error of a feature gradient: what casting it to the inputs' dtype costs, or fp32 accumulation."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_close_to_float64_on_the_same_inputs(case, dtype):
    inputs, constants = case.make(96, 32, dtype)
    exact_inputs = {name: value.double() for name, value in inputs.items()}
    exact_constants = {n: v.double() if v.is_floating_point() else v for n, v in constants.items()}
    truth = value_and_gradients(case.naive, exact_inputs, exact_constants)
    ours = value_and_gradients(case.ours, inputs, constants)
    assert ours["loss"].dtype == torch.float32
    assert abs(ours["loss"].double() - truth["loss"]) <= 1e-5 * max(1.0, truth["loss"].item())
    for name in inputs:
        assert ours[name].dtype == inputs[name].dtype
        assert _relative(ours[name], truth[name]) <= DTYPES[dtype], name


def test_no_worse_than_the_host_in_bf16_at_scale_100():
    """open_clip rounds its logits to bf16 under autocast; the library's error must be the smaller, here by far."""
    image, text = naive_pair(512, 64, torch.bfloat16)
    leaves = [value.requires_grad_() for value in (image, text)]
    exact = value_and_gradients(naive.clip, {"image": image.double(), "text": text.double()}, {"scale": 100.0})

    clipkit.clip_loss(image, text, 100.0).backward()
    ours = [_relative(leaf.grad, exact[name]) for leaf, name in zip(leaves, ("image", "text"), strict=True)]
    for leaf in leaves:
        leaf.grad = None
    logits = (100.0 * image @ text.T).float()
    labels = torch.arange(512)
    entropies = (torch.nn.functional.cross_entropy(matrix, labels) for matrix in (logits, logits.T))
    host_loss = sum(entropies) / 2
    host_loss.backward()
    host = [_relative(leaf.grad, exact[name]) for leaf, name in zip(leaves, ("image", "text"), strict=True)]
    assert all(mine < theirs for mine, theirs in zip(ours, host, strict=True)), (ours, host)
    assert abs(clipkit.clip_loss(image, text, 100.0).double() - exact["loss"]) < 1e-5 < abs(host_loss - exact["loss"])


def test_autocast_does_not_reach_the_logits():
    image, text = unit(64, 16, 0, torch.float32), unit(64, 16, 1, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = clipkit.clip_loss(image, text, 100.0)
    assert torch.equal(inside, clipkit.clip_loss(image, text, 100.0))


@pytest.mark.parametrize("backend", ["torch", None])
@pytest.mark.parametrize("name", ["clip", "info_nce"])
def test_well_learned_pairs_keep_their_digits_in_fp32(name, backend):
    """Loss and gradients of 2e-6: differences of fp32 numbers near 14 and 1 would leave one digit of them or none."""
    pair = {"a": torch.eye(4), "b": torch.eye(4), "s": torch.tensor(1 / 0.07)}
    exact = value_and_gradients(BY_NAME[name].naive, {key: value.double() for key, value in pair.items()}, {})
    ours = value_and_gradients(lambda **values: BY_NAME[name].ours(**values, backend=backend), pair, {})
    for key, expected in exact.items():
        assert _relative(ours[key], expected) < 1e-5, key


@pytest.mark.parametrize("backend", ["torch", None])
@pytest.mark.parametrize("form", ["symmetric", "four_term"])
@pytest.mark.parametrize("closeness", [0.0, 0.3, 0.45, 0.6])
def test_gradient_distillation_keeps_its_digits_on_learned_pairs(closeness, form, backend):
    """CLIP losses from 16 down to 1e-10. A mean of R that consists of R_ii, taken from R_ii, would leave none."""
    student, teacher = ([unit(96, 32, seed, torch.float32), unit(96, 32, seed + 1, torch.float32)] for seed in (0, 2))
    for pair, near in ((student, closeness), (teacher, 0.9 * closeness)):
        pair[1] = torch.nn.functional.normalize(near * pair[0] + (1 - near) * pair[1], dim=1)

    def gradients(dtype, backend):
        own = [features.to(dtype).requires_grad_() for features in student]
        loss = clipkit.gd_loss(*own, 50.0, *(t.to(dtype) for t in teacher), 50.0, form=form, backend=backend)
        return torch.autograd.grad(loss, own)

    for ours, exact in zip(gradients(torch.float32, backend), gradients(torch.float64, "torch"), strict=True):
        assert _relative(ours, exact) < 5e-5


def test_float64_is_exact_where_softplus_is_nearly_linear():
    """Margins between 20 and 40 nats: torch's default softplus drops up to 2e-9 there."""
    eye = torch.eye(4, dtype=torch.float64)
    for scale in (10.1, 12.0, 15.0):
        loss = clipkit.clip_loss(eye, -eye, scale)
        assert loss.item() == pytest.approx(math.log(3 + math.exp(-scale)) + scale, rel=1e-14)
        exact = naive.info_nce(eye, -eye, 2 * scale)
        assert clipkit.info_nce(eye, -eye, 2 * scale).item() == pytest.approx(exact.item(), rel=1e-14)
        exact = naive.siglip(eye, -eye, 2 * scale, 1.0)
        assert clipkit.siglip_loss(eye, -eye, 2 * scale, 1.0).item() == pytest.approx(exact.item(), rel=1e-14)


@pytest.mark.parametrize("backend", ["torch", None])
class TestExtremes:
    def test_duplicates_at_scale_100_and_beyond(self, backend):
        rows = unit(4, 8, 0, torch.float32).repeat(8, 1).requires_grad_()
        for scale in (100.0, 1000.0):
            loss = clipkit.clip_loss(rows, rows.detach(), scale, backend=backend)
            (gradient,) = torch.autograd.grad(loss, rows)
            torch.testing.assert_close(loss.item(), torch.log(torch.tensor(8.0)).item(), rtol=1e-4, atol=1e-4)
            assert gradient.isfinite().all()

    def test_antipodal_pairs_and_opposite_extremes(self, backend):
        rows = torch.eye(6).requires_grad_()
        loss = clipkit.clip_loss(rows, -torch.eye(6), 200.0, backend=backend)
        loss.backward()
        torch.testing.assert_close(loss.item(), 200.0 + torch.log(torch.tensor(5.0)).item(), rtol=1e-6, atol=0)
        assert rows.grad.isfinite().all()

    def test_unnormalised_logits_of_ten_thousand(self, backend):
        generator = torch.Generator().manual_seed(0)
        image, text = (torch.randn(40, 8, generator=generator) * 50 for _ in range(2))
        image.requires_grad_()
        loss = clipkit.clip_loss(image, text, 1.0, backend=backend)
        loss.backward()
        exact = naive.clip(image.detach().double(), text.double(), 1.0)
        torch.testing.assert_close(loss.double().detach(), exact, rtol=1e-6, atol=1e-3)
        assert image.grad.isfinite().all()

    def test_outliers_in_a_cone_of_features(self, backend):
        """Rows 150 nats below their neighbours: an offset shared by a tile would flush them to log(0)."""
        generator = torch.Generator().manual_seed(1)
        cone = torch.nn.functional.normalize(torch.randn(300, 16, generator=generator) * 0.05 + torch.eye(16)[0], dim=1)
        image, text = cone.clone(), cone.clone()
        image[::37] *= -1
        loss = clipkit.clip_loss(image, text, 100.0, backend=backend)
        torch.testing.assert_close(loss.double(), naive.clip(image.double(), text.double(), 100.0), rtol=1e-6, atol=0)


def naive_pair(rows: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs that resemble each other as a trained model's do (cosine about 0.5)."""
    text = unit(rows, width, 0)
    image = torch.nn.functional.normalize(text + 1.7 * unit(rows, width, 1), dim=1)
    return image.to(dtype), text.to(dtype)


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30))
