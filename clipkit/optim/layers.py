# SPDX-License-Identifier: Apache-2.0
"""Which tower a parameter belongs to, and how deep in it: what per-tower rates and layer decay go by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from clipkit.errors import value_error

IMAGE, TEXT = "image", "text"

_TEXT_NAMES = {"text", "token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection"}
_INPUT_NAMES = {
    "patch_embed",
    "pos_embed",
    "cls_token",
    "mask_token",
    "conv1",
    "positional_embedding",
    "token_embedding",
    "class_embedding",
    "ln_pre",
}
"""What lies before the first block: EVA-CLIP's list, and OpenAI's names for two parts that list leaves out, the class
token and the normalisation that EVA's towers do not have. Both are as far from the loss as the patch embedding."""

_BLOCK = re.compile(r"(?:^|\.)(?:resblocks|blocks)\.(\d+)\.")


def tower_of(name: str) -> str | None:
    """ "image", "text", or None for what belongs to neither (the scale, a loss's own weights)."""
    parts = name.split(".")
    if "visual" in parts:
        return IMAGE
    return TEXT if _TEXT_NAMES.intersection(parts) else None


def layer_scales(names: Iterable[str], decay: Mapping[str, float]) -> dict[str, float]:
    """What layer decay multiplies the rate of each parameter by.

    A tower of L blocks has the layers 0 (embeddings and all else before the blocks), k + 1 (block k, from 0) and L + 1
    (what follows the blocks); layer l is scaled by decay^(L + 1 - l), as EVA-CLIP trains (Sun et al. 2023) and BEiT
    before it. So the last block has decay^1, the projection 1.

    Args:
        names: of all the model's parameters, also of those that are not trained, which count as layers.
        decay: for each tower its factor from one layer to the one below.

    Raises:
        ValueError: a decay other than 1 for a tower without numbered blocks.
    """
    names = list(names)
    depth = dict.fromkeys(decay, 0)
    for name in names:
        tower, block = tower_of(name), _BLOCK.search(name)
        if tower in depth and block is not None:
            depth[tower] = max(depth[tower], int(block.group(1)) + 1)
    for tower, factor in decay.items():
        if factor != 1.0 and not depth[tower]:
            raise value_error(
                f"{tower}.layer_decay",
                got=f"{factor} for a tower without numbered blocks",
                want="blocks.0, blocks.1, ... as transformers have them",
                fix="use 1.0",
            )
    return {name: _scale(name, decay, depth) for name in names}


def _scale(name: str, decay: Mapping[str, float], depth: Mapping[str, int]) -> float:
    tower = tower_of(name)
    if tower is None or tower not in decay:
        return 1.0
    return decay[tower] ** (depth[tower] + 1 - _layer(name, depth[tower]))


def _layer(name: str, blocks: int) -> int:
    block = _BLOCK.search(name)
    if block is not None:
        return int(block.group(1)) + 1
    return 0 if _INPUT_NAMES.intersection(name.split(".")) else blocks + 1
