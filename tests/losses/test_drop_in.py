# SPDX-License-Identifier: Apache-2.0
"""The modules stand where open_clip's stood: the same constructors, calls, values and gradients."""

from __future__ import annotations

import inspect

import pytest
import torch

import clipkit
from tests.reference import naive
from tests.reference.naive import unit

STUDENT = (unit(20, 8, 0, torch.float32), unit(20, 8, 1, torch.float32))
TEACHER = (unit(20, 12, 2, torch.float32), unit(20, 12, 3, torch.float32))


def _grads(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


def _leaves():
    return [value.clone().requires_grad_() for value in (*STUDENT, torch.tensor(14.0))]


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss", "DistillClipLoss"])
def test_arguments_are_open_clips(open_clip, name):
    ours, theirs = getattr(clipkit, name), getattr(open_clip.loss, name)
    for method in ("__init__", "forward"):
        expected = [p for p in inspect.signature(getattr(theirs, method)).parameters.values() if p.name != "self"]
        actual = [p for p in inspect.signature(getattr(ours, method)).parameters.values() if p.name != "self"]
        shared = actual[: len(expected)]
        assert [p.name for p in shared] == [p.name for p in expected]
        assert [p.default for p in shared] == [p.default for p in expected]
        assert all(p.default is not p.empty for p in actual[len(expected) :])


def test_clip_loss_equals_open_clips(open_clip):
    ours, theirs = _leaves(), _leaves()
    loss, expected = clipkit.ClipLoss()(*ours), open_clip.ClipLoss()(*theirs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(_grads(loss, *ours), _grads(expected, *theirs), rtol=1e-4, atol=1e-7)


def test_siglip_loss_equals_open_clips(open_clip):
    ours, theirs = _leaves(), _leaves()
    loss, expected = clipkit.SigLipLoss()(*ours, -10.0), open_clip.loss.SigLipLoss()(*theirs, -10.0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(_grads(loss, *ours), _grads(expected, *theirs), rtol=1e-4, atol=1e-7)


def test_distill_loss_equals_open_clips_values_with_the_teachers_entropy(open_clip):
    ours, theirs = _leaves(), _leaves()
    arguments = (*TEACHER, torch.tensor(30.0))
    loss = clipkit.DistillClipLoss()(*ours, *arguments, output_dict=True)
    expected = open_clip.loss.DistillClipLoss()(*theirs, *arguments, output_dict=True)
    assert loss.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(loss[key], expected[key], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        _grads(loss["distill_loss"], *ours), _grads(expected["distill_loss"], *theirs), rtol=1e-3, atol=1e-6
    )


def test_distill_value_is_the_cross_entropy():
    image, text, scale = (value.double() for value in _leaves())
    teacher = [value.double() for value in TEACHER]
    _, distill = clipkit.DistillClipLoss()(image, text, scale, *teacher, 30.0)
    soft = (30.0 * teacher[0] @ teacher[1].T, scale * image @ text.T)
    rows, columns = (-(soft[0].softmax(axis) * soft[1].log_softmax(axis)).sum() / 20 for axis in (0, 1))
    torch.testing.assert_close(distill, (rows + columns) / 2)


def test_dictionaries_and_accepted_options():
    image, text = STUDENT
    loss = clipkit.ClipLoss(local_loss=True, gather_with_grad=False, cache_labels=True, rank=0, world_size=1)
    assert (loss.local_loss, loss.gather_with_grad, loss.cache_labels, loss.rank, loss.world_size) == (
        True, False, True, 0, 1,
    )  # fmt: skip
    named = loss(image, text, 14.0, output_dict=True)
    assert list(named) == ["contrastive_loss"]
    torch.testing.assert_close(named["contrastive_loss"].double(), naive.clip(image.double(), text.double(), 14.0))
    sigmoid = clipkit.SigLipLoss(dist_impl="gather", chunk_size=4)
    assert list(sigmoid(image, text, 10.0, -10.0, output_dict=True)) == ["contrastive_loss"]
    assert (sigmoid.dist_impl, sigmoid.chunk_size) == ("gather", 4)


def test_a_bias_that_a_softmax_cannot_see_still_gets_a_gradient_for_ddp():
    bias = torch.zeros((), requires_grad=True)
    clipkit.ClipLoss()(*STUDENT, 14.0, logit_bias=bias).backward()
    assert bias.grad == 0.0


def test_a_world_size_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="world_size: got 4; want the size of the process group, 1"):
        clipkit.ClipLoss(rank=1, world_size=4)(*STUDENT, 14.0)
