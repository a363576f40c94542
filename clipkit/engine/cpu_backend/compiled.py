# SPDX-License-Identifier: Apache-2.0
"""The compiled module, where it was built."""

from __future__ import annotations

import functools
from types import ModuleType

import torch


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve such tensors here, or None."""
    if device.type != "cpu":
        return "it computes on the CPU"
    if dtype == torch.float64:
        return "its epilogue is fp32"
    return _load()[1]


def compiled() -> ModuleType:
    """`clipkit._native`; to be asked for only where `obstacle` found none."""
    module, _ = _load()
    assert module is not None, "dispatch asks obstacle() first"
    return module


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        from clipkit import _native as module
    except ImportError as error:
        return None, f"clipkit was installed without its compiled part ({error})"
    return module, None
