# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test folder."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch

_TORCHVISION_OPERATORS: list[torch.library.Library] = []


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


def _peer(name: str) -> ModuleType:
    try:
        _let_torchvision_import()
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(
            f"{name} does not import here ({type(error).__name__}: {error}); the comparison with it is left out"
        )


@pytest.fixture(scope="session")
def open_clip() -> ModuleType:
    """open_clip, or a visible skip where it does not import."""
    return _peer("open_clip")


@pytest.fixture(scope="session")
def timm_vision_transformer() -> ModuleType:
    """timm.models.vision_transformer, or a visible skip where it does not import."""
    return _peer("timm.models.vision_transformer")


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """Hugging Face transformers, or a visible skip where it does not import."""
    return _peer("transformers")
