# SPDX-License-Identifier: Apache-2.0
"""Plain torch: every loss as its definition is written, the N x N matrix of logits stored and kept for the backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.cases import Tensors
from bench.peers import Step, Variant, by_autograd
from tests.reference import naive

TEACHER_SCALE = 20.0


def _linear_bce(t: Tensors) -> Tensor:
    own = torch.arange(len(t.text), device=t.text.device)
    offsets = torch.arange(len(t.image) + 1, device=t.text.device)
    return naive.linear_bce(t.image, t.text, t.text.new_zeros(len(t.text)), offsets, own)


DEFINITIONS: dict[str, Callable[[Tensors], Tensor]] = {
    "clip": lambda t: naive.clip(t.image, t.text, t.scale),
    "info_nce": lambda t: naive.info_nce(t.image, t.text, t.scale),
    "global_contrastive": lambda t: naive.global_contrastive(
        t.image, t.text, t.scale, t.log_u, t.log_u, gamma=0.5, eps=1e-14
    )[0],
    "siglip": lambda t: naive.siglip(t.image, t.text, t.scale, t.bias),
    "linear_bce": _linear_bce,
    "crd": lambda t: naive.crd(t.image, t.text, t.scale, t.teacher_image, t.teacher_text, TEACHER_SCALE),
    "icl": lambda t: naive.icl(t.image, t.text, t.teacher_image, t.teacher_text, t.scale),
    "gd": lambda t: naive.gd(t.image, t.text, t.scale, t.teacher_image, t.teacher_text, TEACHER_SCALE),
}


def load(loss: str) -> Step:
    """The definition under autograd."""
    return by_autograd(DEFINITIONS[loss])


PEER = Variant("torch", tuple(DEFINITIONS), load)
