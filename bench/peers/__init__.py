# SPDX-License-Identifier: Apache-2.0
"""What clipkit is measured beside, one file each. A peer that is not installed, cannot run here or fails is a row that
says so.

An adapter is a module with `PEER`: its name in tables, the distribution it comes from, the losses it has and `load`,
which imports it and returns its `Step`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from bench.cases import Tensors

Step = Callable[[Tensors, str], "Outcome"]
"""One step on the tensors in a direction, "fwd" or "fwd+bwd"."""


@dataclass(frozen=True)
class Outcome:
    """What a step computed: the loss, and in direction "fwd+bwd" the gradients of image and text."""

    loss: Tensor
    gradients: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One way to compute a loss, as the suite knows it: a backend of clipkit, or a peer.

    Attributes:
        name: in tables, files and `--peers`.
        losses: those it has.
        load: loss -> Step; raises what the import raises.
        distribution: the package index's name; None for what is written here in plain torch.
        needs_cuda: it has no CPU path.
        own_kernels: it launches kernels of its own: its first step is a trial in a process of its own, because a fault
            in a kernel ends the process's use of the card.
        compiles: its first step at a size is a compilation, so the warm-up is of that size.
        remark: what its step does not do that the others' do.
    """

    name: str
    losses: tuple[str, ...]
    load: Callable[[str], Step]
    distribution: str | None = None
    needs_cuda: bool = False
    own_kernels: bool = False
    compiles: bool = False
    remark: str = ""

    @property
    def version(self) -> str | None:
        """The installed version, None where it is not installed or nothing to install."""
        try:
            return importlib.metadata.version(self.distribution) if self.distribution else None
        except importlib.metadata.PackageNotFoundError:
            return None


MODULES = (
    "naive",
    "compiled",
    "open_clip",
    "checkpointed",
    "gradcache",
    "sentence_transformers",
    "inf_cl",
    "memeff",
    "siglip_kernel",
)


def all_peers() -> dict[str, Variant]:
    """Every peer by its name, none of them imported yet."""
    peers = [importlib.import_module(f"bench.peers.{name}").PEER for name in MODULES]
    return {peer.name: peer for peer in peers}


def by_autograd(loss: Callable[[Tensors], Tensor]) -> Step:
    """The step of a differentiable function: its value without a graph, or its value and all gradients."""

    def step(tensors: Tensors, direction: str) -> Outcome:
        if direction == "fwd":
            with torch.no_grad():
                return Outcome(loss(tensors))
        value = loss(tensors)
        gradients = torch.autograd.grad(value, tensors.wanted, allow_unused=True)
        return Outcome(value.detach(), tuple(gradient for gradient in gradients[:2] if gradient is not None))

    return step


_TORCHVISION_OPERATORS: list[torch.library.Library] = []


def import_peer(name: str) -> ModuleType:
    """Import `name` (open_clip, timm, ...). Raises whatever its import raises."""
    _let_torchvision_import()
    return importlib.import_module(name)


def _let_torchvision_import() -> None:
    """torchvision's wheel on PyPI is built for CUDA; beside a CPU-only torch its import stops at two missing operators.

    Declaring them is enough for the Python parts, which are all that open_clip and timm need.
    """
    if torch.version.cuda is not None or _TORCHVISION_OPERATORS:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _TORCHVISION_OPERATORS.append(library)
