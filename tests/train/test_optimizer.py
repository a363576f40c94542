# SPDX-License-Identifier: Apache-2.0
"""Learning rates over steps, and who is decayed."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from clipkit.optim import learning_rate, parameter_groups


def rates(**settings):
    return [learning_rate(step, total_steps=20, peak=1.0, **settings) for step in range(20)]


def test_warmup_rises_in_a_line_from_above_zero_to_the_peak():
    assert rates(warmup_steps=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_cosine_falls_to_the_minimum():
    found = rates(warmup_steps=4, lr_min=0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(found[4:]))
    assert learning_rate(20, total_steps=20, peak=1.0, warmup_steps=4, lr_min=0.1) == pytest.approx(0.1)
    assert found[12] == pytest.approx(0.55), "half-way between peak and minimum at half time"


def test_constant_stays():
    assert set(rates(warmup_steps=2, shape="constant")[2:]) == {1.0}


def test_unknown_shape_is_refused():
    with pytest.raises(ValueError, match=r"optim\.schedule.name"):
        learning_rate(5, total_steps=10, peak=1.0, shape="linear")


def test_only_matrices_are_decayed_and_the_scale_is_apart():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    module.logit_scale = nn.Parameter(torch.zeros(()))
    module.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    groups = {
        group["group"]: group
        for group in parameter_groups(module.named_parameters(), lr=1.0, weight_decay=0.2, lr_scale=0.1)
    }
    assert groups["decay"]["names"] == ["0.weight"]
    assert groups["no_decay"]["names"] == ["0.bias", "1.weight", "1.bias"]
    assert groups["scale"]["names"] == ["logit_scale"]
    assert [groups[name]["weight_decay"] for name in ("decay", "no_decay", "scale")] == [0.2, 0.0, 0.0]
    assert [groups[name]["peak_lr"] for name in ("decay", "no_decay", "scale")] == [1.0, 1.0, 0.1]
