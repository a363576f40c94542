# SPDX-License-Identifier: Apache-2.0
"""memeff's CLIP loss, with its gradient in the loss's own units (its default rescales it)."""

from __future__ import annotations

from bench.cases import SCALE
from bench.peers import Step, Variant, by_autograd, import_peer


def load(loss: str) -> Step:
    """The module's forward under autograd; the temperature is a number to it."""
    del loss
    module = import_peer("memeff").MemoryEfficientCLIPLoss(temperature=1 / SCALE, normalized_inputs=True, stable=False)
    return by_autograd(lambda t: module(t.image, t.text))


PEER = Variant(
    "memeff",
    ("clip",),
    load,
    distribution="memeff",
    needs_cuda=True,
    own_kernels=True,
    remark="no gradient of the scale",
)
