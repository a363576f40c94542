# SPDX-License-Identifier: Apache-2.0
"""Answers worked out by hand or published, to twelve digits in float64."""

from __future__ import annotations

import math

import pytest
import torch

import clipkit

EYE2, EYE4 = torch.eye(2, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
S3 = torch.tensor([[2.0, 1, 0], [0, 2, 1], [1, 0, 2]], dtype=torch.float64)
"""Used as logits: features S3 against the identity, scale 1."""
EYE3 = torch.eye(3, dtype=torch.float64)


def angles(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], dim=1)


IMAGE, TEXT = angles(0, 90, 200), angles(10, 80, 230)


def close(actual: torch.Tensor, expected: object, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual.detach(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


def leaf(values: torch.Tensor) -> torch.Tensor:
    return values.clone().requires_grad_()


def test_clip_of_equal_embeddings_is_log_n_with_no_gradient():
    rows, other = (torch.ones(8, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    loss = clipkit.clip_loss(rows, other, scale)
    loss.backward()
    close(loss, 2.0794415416798357)
    close(rows.grad, [[0.0] * 3] * 8)
    close(scale.grad, 0.0)


@pytest.mark.parametrize(
    "scale, expected", [(1.0, 0.7436683806286791), (1 / 0.07, 1.8746230957e-6), (100.0, 1.116e-43)]
)
def test_clip_of_orthogonal_pairs(scale, expected):
    loss = clipkit.clip_loss(EYE4, EYE4, scale)
    assert loss.item() == pytest.approx(expected, rel=1e-3 if scale == 100 else 1e-9)


def test_a_tiny_loss_keeps_its_relative_accuracy_in_fp32():
    """r - S_ii would be zero in fp32 here; the margin form is not."""
    loss = clipkit.clip_loss(EYE4.float(), EYE4.float(), 1 / 0.07)
    assert loss.item() == pytest.approx(1.8746230957e-6, rel=1e-5)
    assert clipkit.clip_loss(EYE4.float(), EYE4.float(), 60.0).item() == pytest.approx(3 * math.exp(-60), rel=1e-4)


def test_scale_gradient_of_orthogonal_pairs():
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    clipkit.clip_loss(EYE4, EYE4, scale).backward()
    close(scale.grad, -0.5246331135813283)


def test_clip_of_antipodal_pairs():
    close(clipkit.clip_loss(EYE4, -EYE4, 2.0), 3.142736116767145)


def test_clip_two_by_two():
    image = leaf(torch.tensor([[1.0, 0], [0.6, 0.8]], dtype=torch.float64))
    text = leaf(torch.tensor([[0.8, 0.6], [0, 1.0]], dtype=torch.float64))
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    loss = clipkit.clip_loss(image, text, scale)
    loss.backward()
    close(loss, 0.594625296932794)
    close(image.grad, [[-0.7079606910897042, -0.4860049934120492], [1.3799489622552252, 0.15001085782928872]])
    close(text.grad, [[0.15001085782928875, 1.3799489622552252], [-0.4860049934120492, -0.7079606910897042]])
    close(scale.grad, 0.04800347450537237)
    close(5 * scale.grad - (image.detach() * image.grad).sum(), 0.0)


def test_label_smoothing():
    close(clipkit.clip_loss(EYE4, EYE4, 4.0, label_smoothing=0.1), 0.35349044970593363)


def test_siglip():
    close(clipkit.siglip_loss(EYE4, EYE4, 10.0, -10.0), 0.6932833772575958)
    ones = torch.ones(4, 1, dtype=torch.float64)
    close(clipkit.siglip_loss(ones, ones, 10.0, -10.0), 2.772588722239781)
    close(clipkit.siglip_loss(ones[:1], ones[:1], 10.0, -10.0), math.log(2))
    close(clipkit.siglip_loss(S3, EYE3, 1.0, 0.0), 2.1333368791211407)


def test_info_nce_with_offset_labels_and_extra_keys():
    logits = torch.tensor([[0.0, 0, 0, 2, 2], [0, 2, 0, 0, 0]], dtype=torch.float64)
    loss = clipkit.info_nce(logits, torch.eye(5, dtype=torch.float64), 1.0, labels=torch.tensor([3, 1]))
    close(loss, 0.655310475921085)


def test_info_nce_against_a_queue_leaves_the_keys_alone():
    query = leaf(EYE4[:1])
    keys = leaf(EYE4)
    loss = clipkit.info_nce(query, keys, 2.0, labels=torch.tensor([0]), key_grad=False)
    loss.backward()
    close(loss, 0.3407529539131313)
    assert keys.grad is None
    assert query.grad is not None


def test_crd_of_identical_models_is_exactly_zero_with_no_gradient():
    image, text = leaf(IMAGE.float()), leaf(TEXT.float())
    loss = clipkit.crd_loss(image, text, 20.0, IMAGE.float(), TEXT.float(), 20.0)
    loss.backward()
    assert loss.item() == 0.0
    assert not image.grad.any()
    assert not text.grad.any()


def test_crd_limits():
    """A uniform teacher, and a teacher so sharp that it is one-hot: the KL becomes InfoNCE."""
    uniform = torch.ones(3, 1, dtype=torch.float64)
    close(clipkit.crd_loss(S3, EYE3, 1.0, uniform, uniform, 1.0), 0.3089936757762706)
    close(clipkit.crd_loss(S3, EYE3, 1.0, EYE3, EYE3, 1e4), 0.4076059644443806)


def test_crd_does_not_see_the_teacher_rotated_or_padded():
    rotation = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    plain = clipkit.crd_loss(IMAGE, TEXT, 3.0, TEXT, IMAGE, 6.0)
    close(clipkit.crd_loss(IMAGE, TEXT, 3.0, TEXT @ rotation, IMAGE @ rotation, 6.0) - plain, 0.0)
    padded = [torch.cat([rows, torch.zeros(3, 2, dtype=torch.float64)], 1) for rows in (TEXT, IMAGE)]
    close(clipkit.crd_loss(IMAGE, TEXT, 3.0, *padded, 6.0) - plain, 0.0)


def test_crd_reductions_differ_by_two():
    arguments = (IMAGE, TEXT, 3.0, TEXT, IMAGE, 6.0)
    mean, total = (clipkit.crd_loss(*arguments, reduction=r) for r in ("mean_directions", "sum_directions"))
    close(total - 2 * mean, 0.0)


def test_fd_units():
    student = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    close(clipkit.fd_loss(student, teacher, teacher, teacher), 0.8)
    close(clipkit.fd_loss(student, teacher, teacher, teacher, reduction="element"), 0.4)


def test_gd_form_may_be_spelt_with_a_hyphen():
    arguments = (IMAGE, TEXT, 3.0, TEXT, IMAGE, 5.0)
    assert torch.equal(clipkit.gd_loss(*arguments, form="four-term"), clipkit.gd_loss(*arguments, form="four_term"))


def test_gd_of_scales():
    close(clipkit.gd_loss(EYE2, EYE2, 3.0, EYE2, EYE2, 5.0), 0.04736139353325826)
    close(clipkit.gd_loss(EYE2, EYE2, 3.0, EYE2, EYE2, 3.0), 0.0)


class TestFastCLIP:
    """Three pairs at known angles, s = 2."""

    def test_equals_clip_when_gamma_is_one_and_eps_is_the_share_of_the_positive(self):
        image, text = leaf(IMAGE), leaf(TEXT)
        scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        never = torch.full((3,), -torch.inf, dtype=torch.float64)
        loss, *_ = clipkit.global_contrastive_loss(image, text, scale, never, never, gamma=1.0, eps=0.5)
        loss.backward()
        expected = [[-0.11912332, 0.06351156], [0.07100061, -0.12280168], [0.05334642, 0.07683695]]
        close(image.grad, expected, 1e-8)
        expected = [[-0.13516745, 0.10328917], [0.07436839, -0.13969489], [0.07631220, 0.03843751]]
        close(text.grad, expected, 1e-8)
        close(scale.grad, -0.15916701, 1e-8)

    def test_general_estimator(self):
        image, text = leaf(IMAGE), leaf(TEXT)
        scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        old = [torch.tensor(u, dtype=torch.float64).log() for u in ([0.5, 1, 2], [1.5, 0.25, 1])]
        loss, log_u1, log_u2 = clipkit.global_contrastive_loss(image, text, scale, *old, gamma=0.5, eps=0.0)
        loss.backward()
        close(log_u1.exp(), [0.30900343, 0.55689656, 1.02244201], 1e-8)
        close(log_u2.exp(), [0.80422586, 0.18719083, 0.52178675], 1e-8)
        close(loss, 0.25215888, 1e-8)
        expected = [[-0.14403081, 0.22017891], [0.03455050, -0.28409954], [0.04501044, 0.08938218]]
        close(image.grad, expected, 1e-8)
        expected = [[-0.17982017, 0.09725106], [0.22937565, -0.30885718], [0.07633805, 0.03575846]]
        close(text.grad, expected, 1e-8)
        close(2 * scale.grad, -0.50099684, 1e-8)

    @pytest.mark.parametrize("eps, expected", [(0.0, 5.0), (1e-6, 5.0 * 0.97844824), (1.0, 2.2698934e-4)])
    def test_two_orthogonal_pairs(self, eps, expected):
        image = leaf(EYE2)
        never = torch.full((2,), -torch.inf, dtype=torch.float64)
        loss, *_ = clipkit.global_contrastive_loss(image, EYE2, 10.0, never, never, gamma=1.0, eps=eps)
        loss.backward()
        torch.testing.assert_close(
            image.grad, expected * torch.tensor([[-1.0, 1], [1, -1]], dtype=torch.float64), rtol=1e-7, atol=0
        )

    def test_the_reference_temperature_gradient_is_twice_the_exact_one(self):
        gradients = []
        for rule in ("exact", "reference"):
            scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
            state = torch.zeros(3, dtype=torch.float64)
            clipkit.global_contrastive_loss(IMAGE, TEXT, scale, state, state, gamma=0.4, tau_grad=rule)[0].backward()
            gradients.append(scale.grad)
        assert torch.equal(gradients[1], 2 * gradients[0])

    def test_a_sample_never_visited_takes_its_first_estimate_whatever_gamma(self):
        never = torch.full((3,), -torch.inf, dtype=torch.float64)
        slow = clipkit.global_contrastive_loss(IMAGE, TEXT, 2.0, never, never, gamma=0.2)
        at_once = clipkit.global_contrastive_loss(IMAGE, TEXT, 2.0, never, never, gamma=1.0)
        assert torch.equal(slow[1], at_once[1])
        assert torch.equal(slow[2], at_once[2])

    def test_the_first_estimate_is_the_decoupled_contrastive_loss(self):
        """log g is DCL's row loss less log(N - 1): the positive is in no denominator."""
        for image, text, scale, expected in (
            (EYE4, EYE4, 4.0, -2.90138771133189),
            (S3, EYE3, 1.0, -0.6867383124817771),
        ):
            never = torch.full((len(image),), -torch.inf, dtype=torch.float64)
            _, rows, columns = clipkit.global_contrastive_loss(image, text, scale, never, never, gamma=0.5)
            close((rows.mean() + columns.mean()) / 2 + math.log(len(image) - 1), expected)

    def test_the_surrogate_lies_between_zero_and_one_over_gamma_and_is_one_on_the_first_visit(self):
        never = torch.full((3,), -torch.inf, dtype=torch.float64)
        for gamma in (0.01, 0.2, 0.9):
            loss, *_ = clipkit.global_contrastive_loss(IMAGE, TEXT, 9.0, never, never, gamma=gamma, eps=0.0)
            close(loss, 1.0)
            tiny = torch.full((3,), -1e4, dtype=torch.float64)
            loss, *_ = clipkit.global_contrastive_loss(IMAGE, TEXT, 9.0, tiny, tiny, gamma=gamma, eps=0.0)
            close(loss, 1 / gamma, 1e-9)

    def test_the_callers_state_is_not_changed(self):
        state = torch.zeros(3, dtype=torch.float64)
        clipkit.global_contrastive_loss(IMAGE, TEXT, 2.0, state, state, gamma=0.2)
        assert not state.any()


def test_linear_bce():
    logits = torch.tensor([[0.0, 1, -2, 3], [0.5, -0.5, 10, -10]], dtype=torch.float64, requires_grad=True)
    targets = (torch.tensor([0, 2, 3]), torch.tensor([0, 3, 2]))
    zeros = torch.zeros(4, dtype=torch.float64)
    loss = clipkit.linear_bce_with_logits(logits, EYE4, zeros, *targets)
    loss.backward()
    close(loss, 1.8150844984, 1e-10)
    expected = [
        [-0.25, 0.3655292893, 0.0596014610, -0.0237129366],
        [0.3112296657, 0.1887703344, -2.2698934e-5, 2.2698934e-5],
    ]
    close(logits.grad, expected, 1e-10)
    close(clipkit.linear_bce_with_logits(logits, EYE4, None, *targets, reduction="sum"), 3.6301689969, 1e-10)
    close(clipkit.linear_bce_with_logits(logits, EYE4, None, *targets, reduction="mean"), 0.4537711246, 1e-10)


def test_linear_bce_of_zero_logits_is_log_two_per_label():
    vocabulary = torch.zeros(24_320, 2, dtype=torch.float64)
    targets = (torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64))
    loss = clipkit.linear_bce_with_logits(torch.ones(1, 2, dtype=torch.float64), vocabulary, None, *targets)
    assert loss.item() == pytest.approx(16857.34, abs=0.005)


def test_a_label_listed_twice_counts_once():
    targets_once = (torch.tensor([0, 1]), torch.tensor([2]))
    targets_twice = (torch.tensor([0, 2]), torch.tensor([2, 2]))
    once, twice = (clipkit.linear_bce_with_logits(S3[:1], EYE3, None, *t) for t in (targets_once, targets_twice))
    assert torch.equal(once, twice)
