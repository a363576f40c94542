# SPDX-License-Identifier: Apache-2.0
"""Every loss in the few lines of its definition, N x N matrices and all: what the library is compared with. Tests
only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def clip(image, text, scale, label_smoothing=0.0):
    logits = scale * image @ text.T
    labels = torch.arange(len(image), device=image.device)
    rows = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    columns = F.cross_entropy(logits.T, labels, label_smoothing=label_smoothing)
    return (rows + columns) / 2


def siglip(image, text, scale, bias):
    logits = scale * image @ text.T + bias
    signs = 2 * torch.eye(len(image), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(image)


def info_nce(queries, keys, scale, labels=None):
    labels = torch.arange(len(queries), device=queries.device) if labels is None else labels
    return F.cross_entropy(scale * queries @ keys.T, labels)


def global_contrastive(image, text, scale, log_u_image, log_u_text, gamma, eps):
    count = len(image)
    cosines = image @ text.T
    positive = cosines.diagonal()
    off = 1 - torch.eye(count, dtype=cosines.dtype, device=cosines.device)
    g1 = (off * torch.exp(scale * (cosines - positive[:, None]))).sum(1) / (count - 1)
    g2 = (off * torch.exp(scale * (cosines - positive[None, :]))).sum(0) / (count - 1)
    new = []
    for log_u, g in ((log_u_image, g1.detach()), (log_u_text, g2.detach())):
        moved = (1 - gamma) * log_u.exp() + gamma * g
        new.append(torch.where(log_u.isneginf(), g, moved))
    loss = (g1 / (new[0] + eps) + g2 / (new[1] + eps)).mean() / 2
    return loss, new[0].log(), new[1].log()


def crd(image, text, scale, to_image, to_text, to_scale, weight=0.5):
    student, teacher = scale * image @ text.T, to_scale * to_image @ to_text.T

    def kl(axis):
        return F.kl_div(student.log_softmax(axis), teacher.log_softmax(axis), reduction="sum", log_target=True)

    return weight * (kl(0) + kl(1)) / len(image)


def icl(image, text, to_image, to_text, scale):
    return (info_nce(image, to_text, scale) + info_nce(text, to_image, scale)) / 2


def fd(image, text, to_image, to_text):
    return ((image - to_image).square().sum() + (text - to_text).square().sum()) / len(image)


def gradient_fields(image, text, scale):
    """(g1, g2, g3, g4): gradients of each direction's summed cross-entropy with respect to images and texts."""
    logits = scale * image @ text.T
    eye = torch.eye(len(image), dtype=logits.dtype, device=logits.device)
    p, q = logits.softmax(1) - eye, logits.softmax(0) - eye
    return scale * p @ text, scale * p.T @ image, scale * q.T @ image, scale * q @ text


def gd(image, text, scale, to_image, to_text, to_scale, form="symmetric"):
    g1, g2, g3, g4 = gradient_fields(image, text, scale)
    h1, h2, h3, h4 = gradient_fields(to_image, to_text, to_scale)
    if form == "symmetric":
        gaps = [(g1 + g4 - h1 - h4) / 2, (g2 + g3 - h2 - h3) / 2]
    else:
        gaps = [g1 - h1, g2 - h2, g3 - h3, g4 - h4]
    return sum(gap.square().sum() for gap in gaps) / len(image)


def linear_bce(inputs, weight, bias, offsets, indices):
    logits = inputs @ weight.T + bias
    targets = torch.zeros_like(logits)
    rows = torch.arange(len(inputs), device=logits.device).repeat_interleave(offsets.diff())
    targets[rows, indices] = 1
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(inputs)


def unit(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows on the unit sphere, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1).to(dtype)
