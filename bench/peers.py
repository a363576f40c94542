# SPDX-License-Identifier: Apache-2.0
"""Peers as they are installed, importable also beside a CPU-only torch."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

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
