# SPDX-License-Identifier: Apache-2.0
"""open_clip's ClipLoss and SigLipLoss as its trainer calls them on one process."""

from __future__ import annotations

from bench.peers import Step, Variant, by_autograd, import_peer


def load(loss: str) -> Step:
    """The module's forward under autograd."""
    host = import_peer("open_clip.loss")
    if loss == "siglip":
        siglip = host.SigLipLoss()
        return by_autograd(lambda t: siglip(t.image, t.text, t.scale, t.bias))
    clip = host.ClipLoss()
    return by_autograd(lambda t: clip(t.image, t.text, t.scale))


PEER = Variant("open_clip", ("clip", "siglip"), load, distribution="open_clip_torch")
