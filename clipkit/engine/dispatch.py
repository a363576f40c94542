# SPDX-License-Identifier: Apache-2.0
"""Which implementation runs a sweep, and why another does not.

A backend is a module with `SWEEPS` (the names it implements: sweeps, and the helpers of engine/lamb.py, norms.py,
rotation.py and sample_state.py) and `obstacle(device, dtype)` (why it cannot serve such tensors, or None).
Forced by the `backend=` argument or the environment variable CLIPKIT_BACKEND; a named backend serves the names that it
has and leaves the others to `torch`, and one that cannot run at all is an error, never a silent change.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipkit.engine.precision import FLOATS
from clipkit.errors import value_error

ENVIRONMENT_VARIABLE = "CLIPKIT_BACKEND"

_MODULES = {
    "torch": "clipkit.engine.torch_backend",
    "cpu": "clipkit.engine.cpu_backend",
    "triton": "clipkit.engine.triton_backend",
    "cuda": "clipkit.engine.cuda_backend",
}

_ORDER = {"cpu": ("cpu", "torch"), "cuda": ("triton", "torch")}
"""By device type, best first: the default is the first that is proven and can serve the tensors. `torch` alone for any
other device.
"""

_UNPROVEN = {
    "triton": "not yet proven on a card by tests/gpu; ask for it by name",
    "cuda": "compiled, not yet run on a card; ask for it by name",
}
"""Backends that are never chosen by default, and why. One that has passed `make test-gpu` on a card loses its line
here, and nothing else changes.
"""


class BackendStatus(NamedTuple):
    """One line of `clipkit doctor`: what `name` does for tensors of `device`."""

    name: str
    device: str
    dtypes: tuple[str, ...]
    sweeps: tuple[str, ...]
    default: bool
    reason: str


def choose(sweep: str, like: Tensor, backend: str) -> Callable[..., Any]:
    """The function that runs `sweep` on tensors such as `like`; `backend` "" means the environment's or the device's
    default.

    Raises:
        ValueError: the backend asked for by name does not exist or cannot serve such tensors here.
    """
    return getattr(_load(chosen(sweep, like.device, like.dtype, backend)), sweep)


def chosen(sweep: str, device: torch.device, dtype: torch.dtype, backend: str) -> str:
    """The name of the backend whose function `choose` returns for tensors of this kind."""
    name = backend or os.environ.get(ENVIRONMENT_VARIABLE, "") or _default(device, dtype)
    if name not in _MODULES:
        raise value_error(
            "backend", got=repr(name), want=f"one of {sorted(_MODULES)}", fix="leave it out to use the default"
        )
    module = _load(name)
    obstacle = module.obstacle(device, dtype)
    if obstacle is not None:
        raise value_error(
            "backend",
            got=f"{name!r} for {dtype} tensors on {device}",
            want=f"a backend that can serve them ({obstacle})",
            fix="leave the backend out, or use backend='torch'",
        )
    return name if sweep in module.SWEEPS else "torch"


def _default(device: torch.device, dtype: torch.dtype) -> str:
    proven = (name for name in _ORDER.get(device.type, ("torch",)) if name not in _UNPROVEN)
    return next(name for name in proven if _load(name).obstacle(device, dtype) is None)


def report() -> list[BackendStatus]:
    """Every backend on every kind of device at hand: what it serves, whether it is the default, and why not."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    return [_status(name, device) for device in devices for name in _MODULES]


def _status(name: str, device: torch.device) -> BackendStatus:
    module = _load(name)
    obstacles = {dtype: module.obstacle(device, dtype) for dtype in FLOATS}
    served = tuple(str(dtype).removeprefix("torch.") for dtype, obstacle in obstacles.items() if obstacle is None)
    preferred = tuple(str(dtype).removeprefix("torch.") for dtype in FLOATS if _default(device, dtype) == name)
    if not served:
        reason = str(obstacles[torch.float32])
    elif preferred:
        reason = f"default for {', '.join(preferred)}"
    else:
        reason = _UNPROVEN.get(name, "another backend is faster here")
    return BackendStatus(name, device.type, served, tuple(sorted(module.SWEEPS)), bool(preferred), reason)


def _load(name: str) -> ModuleType:
    return importlib.import_module(_MODULES[name])
