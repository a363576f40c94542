# SPDX-License-Identifier: Apache-2.0
"""Captioned pictures: reading (shards, CSV), global order, decoding, batches; and builders of real sets.

Names are resolved on first use, so that importing one module does not import Pillow, torch or a builder.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "clipkit.data.records": ("BrokenSample", "Dataset", "Record"),
    "clipkit.data.pictures": ("decode_image",),
    "clipkit.data.source": ("open_dataset",),
    "clipkit.data.order": ("GlobalOrder",),
    "clipkit.data.transform": ("ImageTransform",),
    "clipkit.data.batch": ("Batch",),
    "clipkit.data.loader": ("Loader",),
    "clipkit.data.shardwriter": ("Sample", "write_shards"),
    "clipkit.data.tokens": ("get_tokenizer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF]


def __getattr__(name: str) -> Any:
    """Import the module a public name lives in when the name is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'clipkit.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
