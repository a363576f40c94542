# SPDX-License-Identifier: Apache-2.0
"""The loss stage of GradCache (Gao et al. 2021, arXiv 2101.06983): the loss of the stacked representations, taken off
the graph, with its whole matrix of logits; the gradient is cached and reaches the encoders chunk by chunk.

Its package needs its own repository's layout to import, so the pattern is written out here; the encoders are left out.
"""

from __future__ import annotations

import torch

from bench.cases import Tensors
from bench.peers import Outcome, Step, Variant
from bench.peers.naive import DEFINITIONS

CHUNK = 1024


def load(loss: str) -> Step:
    """Cache the gradients of the representations, then backpropagate a surrogate for each chunk."""
    definition = DEFINITIONS[loss]

    def step(tensors: Tensors, direction: str) -> Outcome:
        with torch.no_grad():
            if direction == "fwd":
                return Outcome(definition(tensors))
        value = definition(tensors)
        cached = torch.autograd.grad(value, (tensors.image, tensors.text, tensors.scale))[:2]
        found = []
        for tower, cache in zip((tensors.image, tensors.text), cached, strict=True):
            chunks = zip(tower.split(CHUNK), cache.split(CHUNK), strict=True)
            parts = [torch.autograd.grad(torch.dot(x.flatten(), g.flatten()), x)[0] for x, g in chunks]
            found.append(torch.cat(parts))
        return Outcome(value.detach(), tuple(found))

    return step


PEER = Variant("GradCache style", ("clip",), load)
