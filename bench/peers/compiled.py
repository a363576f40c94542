# SPDX-License-Identifier: Apache-2.0
"""torch.compile of plain torch, for each size anew."""

from __future__ import annotations

import torch

from bench.peers import Step, Variant, by_autograd
from bench.peers.naive import DEFINITIONS


def load(loss: str) -> Step:
    """The definition under torch.compile. Sizes are constants to the compiler: it then has all it can use."""
    torch._dynamo.reset()
    return by_autograd(torch.compile(DEFINITIONS[loss], dynamic=False))


PEER = Variant("torch.compile", ("clip", "siglip"), load, compiles=True)
