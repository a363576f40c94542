# SPDX-License-Identifier: Apache-2.0
"""inf-cl's single-card loss, called once for each direction as its README does."""

from __future__ import annotations

from torch import Tensor

from bench.cases import Tensors
from bench.peers import Step, Variant, by_autograd, import_peer

HEAD_WIDTH = 256
"""The width is cut into pieces of this, a power of two that must divide it."""


def load(loss: str) -> Step:
    """Mean of both directions."""
    del loss
    flash = import_peer("inf_cl").cal_flash_loss

    def clip(t: Tensors) -> Tensor:
        width = HEAD_WIDTH if t.image.shape[1] % HEAD_WIDTH == 0 else t.image.shape[1]
        rows = flash(t.image, t.text, scale=t.scale, head_dim=width).mean()
        return (rows + flash(t.text, t.image, scale=t.scale, head_dim=width).mean()) / 2

    return by_autograd(clip)


PEER = Variant("inf-cl", ("clip",), load, distribution="inf-cl", needs_cuda=True, own_kernels=True)
