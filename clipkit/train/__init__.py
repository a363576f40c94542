# SPDX-License-Identifier: Apache-2.0
"""The trainer: `train(load_config("recipe.yaml"))`, and `load_run` for what came out of it.

Names are resolved on first use: reading a configuration needs no torch.distributed.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "clipkit.train.config": ("Config", "EvalConfig", "dump_config", "load_config", "parse_config"),
    "clipkit.train.loading": ("load_run",),
    "clipkit.train.loop": ("Ending",),
    "clipkit.train.run": ("train",),
    "clipkit.train.runtime": ("Runtime", "runtime"),
    "clipkit.train.watch": ("NonFiniteLossError",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF]


def __getattr__(name: str) -> Any:
    """Import the module a public name lives in when the name is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'clipkit.train' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
