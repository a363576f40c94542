# SPDX-License-Identifier: Apache-2.0
"""Chunks of 1,024 rows under torch's activation checkpointing: what a careful user writes to save the memory.

Eight units for CLIP: a chunk of rows holds no whole column, so each direction has its own S, made in the forward and
again in the backward, and its own two products of gradients. Four for SigLIP, where one direction is all.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bench.cases import Tensors
from bench.peers import Step, Variant, by_autograd

CHUNK = 1024


def _one_direction(queries: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    def part(chunk: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scale * chunk @ keys.T, labels, reduction="sum")

    labels = torch.arange(len(queries), device=queries.device)
    chunks = zip(queries.split(CHUNK), labels.split(CHUNK), strict=True)
    parts = [checkpoint(part, chunk, label, use_reentrant=False) for chunk, label in chunks]
    return torch.stack(parts).sum() / len(queries)


def clip(t: Tensors) -> Tensor:
    """CLIP's loss."""
    return (_one_direction(t.image, t.text, t.scale) + _one_direction(t.text, t.image, t.scale)) / 2


def siglip(t: Tensors) -> Tensor:
    """SigLIP's loss: one direction is all of it."""

    def part(chunk: Tensor, start: int) -> Tensor:
        logits = t.scale * chunk @ t.text.T + t.bias
        positives = logits.diagonal(start)
        return F.softplus(logits).sum() - positives.sum()

    parts = [
        checkpoint(part, chunk, number * CHUNK, use_reentrant=False)
        for number, chunk in enumerate(t.image.split(CHUNK))
    ]
    return torch.stack(parts).sum() / len(t.image)


def load(loss: str) -> Step:
    """The chunked loss under autograd."""
    return by_autograd(siglip if loss == "siglip" else clip)


PEER = Variant("checkpointed chunks", ("clip", "siglip"), load)
