# SPDX-License-Identifier: Apache-2.0
"""clipkit: contrastive image-text losses computed block by block, exactly, in O(N·d) memory, and a trainer on top.

Names are resolved on first use, so that `import clipkit` costs torch and nothing else.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "clipkit.functional": (
        "clip_loss",
        "siglip_loss",
        "info_nce",
        "global_contrastive_loss",
        "crd_loss",
        "icl_loss",
        "fd_loss",
        "gd_loss",
        "linear_bce_with_logits",
    ),
    "clipkit.losses": ("ClipLoss", "SigLipLoss", "DistillClipLoss", "FastCLIPLoss"),
    "clipkit.encoders": ("create_model", "list_models", "load_checkpoint", "load_towers", "export_state_dict"),
    "clipkit.data.tokens": ("get_tokenizer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    """Import the module a public name lives in when the name is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'clipkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
