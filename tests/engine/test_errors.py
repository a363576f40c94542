# SPDX-License-Identifier: Apache-2.0
"""A wrong argument raises at once and names itself, what came, what is wanted and what to do."""

from __future__ import annotations

import pytest
import torch

import clipkit

ROWS = torch.ones(3, 4)
NEVER = torch.full((3,), -torch.inf)
OFFSETS, LABELS = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 4])
WEIGHT = torch.ones(5, 4)

MISTAKES = [
    (lambda: clipkit.clip_loss([[1.0]], ROWS, 1.0), TypeError, "image_features: got a list"),
    (lambda: clipkit.clip_loss(ROWS.long(), ROWS.long(), 1.0), TypeError, "image_features: got torch.int64"),
    (lambda: clipkit.clip_loss(ROWS[0], ROWS[0], 1.0), ValueError, r"image_features: got shape \(4,\)"),
    (lambda: clipkit.clip_loss(ROWS, ROWS[:2], 1.0), ValueError, "text_features: got 2 rows"),
    (lambda: clipkit.clip_loss(ROWS, ROWS[:, :3], 1.0), ValueError, "text_features: got 3 columns"),
    (lambda: clipkit.clip_loss(ROWS[:0], ROWS[:0], 1.0), ValueError, "0 rows in the global batch"),
    (lambda: clipkit.clip_loss(ROWS, ROWS.to("meta"), 1.0), ValueError, "text_features: got a tensor on meta"),
    (lambda: clipkit.clip_loss(ROWS, ROWS, torch.ones(2)), ValueError, r"logit_scale: got .*shape \(2,\)"),
    (lambda: clipkit.clip_loss(ROWS, ROWS, "14"), TypeError, "logit_scale: got a str"),
    (lambda: clipkit.clip_loss(ROWS, ROWS, 1.0, label_smoothing=1.5), ValueError, "label_smoothing: got 1.5"),
    (lambda: clipkit.clip_loss(ROWS, ROWS, 1.0, group="world"), TypeError, "group: got a str"),
    (lambda: clipkit.siglip_loss(ROWS, ROWS, 1.0, None), TypeError, "logit_bias: got a NoneType"),
    (lambda: clipkit.info_nce(ROWS, ROWS[:2], 1.0), ValueError, "keys: got 2 keys for 3 queries"),
    (
        lambda: clipkit.info_nce(ROWS, ROWS, 1.0, labels=torch.tensor([0, 1, 3])),
        ValueError,
        "labels: got values from 0 to 3",
    ),
    (lambda: clipkit.info_nce(ROWS, ROWS, 1.0, labels=torch.ones(3)), TypeError, "labels: got torch.float32"),
    (lambda: clipkit.info_nce(ROWS, ROWS, 1.0, labels=torch.tensor([0])), ValueError, r"labels: got shape \(1,\)"),
    (
        lambda: clipkit.global_contrastive_loss(ROWS, ROWS, 1.0, NEVER, NEVER[:2], gamma=0.5),
        ValueError,
        r"log_u_text: got shape \(2,\)",
    ),
    (
        lambda: clipkit.global_contrastive_loss(ROWS, ROWS, 1.0, NEVER.long(), NEVER, gamma=0.5),
        TypeError,
        "log_u_image: got torch.int64",
    ),
    (lambda: clipkit.global_contrastive_loss(ROWS, ROWS, 1.0, NEVER, NEVER, gamma=0.0), ValueError, "gamma: got 0.0"),
    (
        lambda: clipkit.global_contrastive_loss(ROWS, ROWS, 1.0, NEVER, NEVER, gamma=1, eps=-1.0),
        ValueError,
        "eps: got -1.0",
    ),
    (
        lambda: clipkit.global_contrastive_loss(ROWS, ROWS, 1.0, NEVER, NEVER, gamma=1, tau_grad="double"),
        ValueError,
        "tau_grad: got 'double'",
    ),
    (
        lambda: clipkit.global_contrastive_loss(ROWS[:1], ROWS[:1], 1.0, NEVER[:1], NEVER[:1], gamma=1),
        ValueError,
        "1 rows in the global batch; want at least 2",
    ),
    (
        lambda: clipkit.crd_loss(ROWS, ROWS, 1.0, ROWS[:2], ROWS[:2], 1.0),
        ValueError,
        "teacher_image: got 2 rows",
    ),
    (lambda: clipkit.crd_loss(ROWS, ROWS, 1.0, ROWS, ROWS, 1.0, reduction="mean"), ValueError, "reduction: got 'mean'"),
    (
        lambda: clipkit.crd_loss(ROWS, ROWS, 1.0, ROWS.to("meta"), ROWS.to("meta"), 1.0),
        ValueError,
        "teacher_image: got a tensor on meta",
    ),
    (
        lambda: clipkit.linear_bce_with_logits(ROWS, WEIGHT, None, OFFSETS.to("meta"), LABELS),
        ValueError,
        "target_offsets: got a tensor on meta",
    ),
    (
        lambda: clipkit.linear_bce_with_logits(ROWS, WEIGHT, ROWS[0], OFFSETS, LABELS),
        ValueError,
        "bias: .*one value per label of the vocabulary",
    ),
    (lambda: clipkit.clip_loss(ROWS, ROWS, 1.0, label_smoothing="0.1"), TypeError, "label_smoothing: got a str"),
    (lambda: clipkit.icl_loss(ROWS, ROWS, WEIGHT[:3, :2], ROWS, 1.0), ValueError, "teacher_image: got 2 columns"),
    (lambda: clipkit.fd_loss(ROWS, ROWS, ROWS, ROWS, reduction="sum"), ValueError, "reduction: got 'sum'"),
    (lambda: clipkit.gd_loss(ROWS, ROWS, 1.0, ROWS, ROWS, 1.0, form="both"), ValueError, "form: got 'both'"),
    (
        lambda: clipkit.linear_bce_with_logits(ROWS, WEIGHT[:, :2], None, OFFSETS, LABELS),
        ValueError,
        "weight: got 2 columns",
    ),
    (
        lambda: clipkit.linear_bce_with_logits(ROWS, WEIGHT, ROWS[0], OFFSETS, LABELS),
        ValueError,
        r"bias: got shape \(4,\)",
    ),
    (
        lambda: clipkit.linear_bce_with_logits(ROWS, WEIGHT, None, OFFSETS[:3], LABELS),
        ValueError,
        "target_offsets: got 3",
    ),
    (
        lambda: clipkit.linear_bce_with_logits(ROWS, WEIGHT, None, OFFSETS.flip(0), LABELS),
        ValueError,
        "target_offsets: got offsets",
    ),
    (
        lambda: clipkit.linear_bce_with_logits(ROWS, WEIGHT, None, OFFSETS, LABELS + 1),
        ValueError,
        "target_indices: got values from 1 to 5",
    ),
    (
        lambda: clipkit.linear_bce_with_logits(ROWS, WEIGHT, None, OFFSETS.float(), LABELS),
        TypeError,
        "target_offsets: got torch.float32",
    ),
]


@pytest.mark.parametrize("call, kind, message", MISTAKES, ids=[message[:40] for *_, message in MISTAKES])
def test_mistakes_are_named(call, kind, message):
    with pytest.raises(kind, match=message) as caught:
        call()
    assert str(caught.value).count(";") >= 2, "what came; what is wanted; what to do"
