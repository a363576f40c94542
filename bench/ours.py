# SPDX-License-Identifier: Apache-2.0
"""clipkit's losses as variants of the suite, one for each backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import clipkit
from bench.cases import LOSSES, Tensors
from bench.peers import Step, Variant, by_autograd
from bench.peers.naive import TEACHER_SCALE
from clipkit.engine import dispatch
from clipkit.errors import value_error

OURS = "clipkit"


def _linear_bce(t: Tensors, backend: str | None) -> Tensor:
    own = torch.arange(len(t.text), device=t.text.device)
    offsets = torch.arange(len(t.image) + 1, device=t.text.device)
    return clipkit.linear_bce_with_logits(t.image, t.text, None, offsets, own, backend=backend)


CALLS: dict[str, Callable[[Tensors, str | None], Tensor]] = {
    "clip": lambda t, b: clipkit.clip_loss(t.image, t.text, t.scale, backend=b),
    "info_nce": lambda t, b: clipkit.info_nce(t.image, t.text, t.scale, backend=b),
    "global_contrastive": lambda t, b: clipkit.global_contrastive_loss(
        t.image, t.text, t.scale, t.log_u, t.log_u, gamma=0.5, backend=b
    )[0],
    "siglip": lambda t, b: clipkit.siglip_loss(t.image, t.text, t.scale, t.bias, backend=b),
    "linear_bce": _linear_bce,
    "crd": lambda t, b: clipkit.crd_loss(
        t.image, t.text, t.scale, t.teacher_image, t.teacher_text, TEACHER_SCALE, backend=b
    ),
    "icl": lambda t, b: clipkit.icl_loss(t.image, t.text, t.teacher_image, t.teacher_text, t.scale, backend=b),
    "gd": lambda t, b: clipkit.gd_loss(
        t.image, t.text, t.scale, t.teacher_image, t.teacher_text, TEACHER_SCALE, backend=b
    ),
}


def ours(backend: str | None) -> Variant:
    """clipkit with `backend`, or with the device's default for None."""

    def load(loss: str) -> Step:
        return by_autograd(lambda t: CALLS[loss](t, backend))

    name = OURS if backend is None else f"{OURS}:{backend}"
    return Variant(
        name,
        tuple(LOSSES),
        load,
        distribution="clipkit-torch",
        needs_cuda=backend in ("triton", "cuda"),
        own_kernels=backend in ("triton", "cuda"),
        remark="sweeps that it has no kernels for run on torch" if backend in ("triton", "cuda") else "",
    )


def backends(names: list[str] | None, device: str) -> list[Variant]:
    """The backends asked for. By default: on a CPU its default, on a card all that have kernels for it and `torch`."""
    known = sorted({status.name for status in dispatch.report()})
    for name in names or ():
        if name not in (*known, "default"):
            raise value_error("--backends", got=repr(name), want=f"default or some of {known}", fix="choose from these")
    if names is None:
        names = ["default"] if device == "cpu" else ["triton", "cuda", "torch"]
    return [ours(None if name == "default" else name) for name in names]
