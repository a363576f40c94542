# SPDX-License-Identifier: Apache-2.0
"""siglip-kernel's fused loss, the kernel that it picks for the card and dtype by itself."""

from __future__ import annotations

from bench.peers import Step, Variant, by_autograd, import_peer


def load(loss: str) -> Step:
    """Its function under autograd; it takes the logarithm of the scale."""
    del loss
    fused = import_peer("siglip_kernel").fused_siglip_loss
    return by_autograd(lambda t: fused(t.image, t.text, t.scale.log(), t.bias))


PEER = Variant("siglip-kernel", ("siglip",), load, distribution="siglip-kernel", needs_cuda=True, own_kernels=True)
