# SPDX-License-Identifier: Apache-2.0
"""How others name an EVA-CLIP: its publishers, and timm inside open_clip. Both ways.

The names used here are the publishers', with the text tower at the top level as for every other model. Tables of
rotations, which the publishers save once for the tower and once for every block, are made anew in each pass instead.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from clipkit.encoders.config import EvaConfig
from clipkit.encoders.rope import rotation_tables
from clipkit.encoders.zoo import get_config
from clipkit.errors import value_error

State = dict[str, Tensor]

TRUNK = "visual.trunk."
_ROTATIONS = re.compile(r"(?:.*\.)?rope\.freqs_(?:cos|sin)")
# Publishers', timm's, inside a block that normalises before its output projections. Other blocks differ in nothing.
_NAMES = (
    ("attn.q_bias", "attn.q_proj.bias"),
    ("attn.v_bias", "attn.v_proj.bias"),
    ("attn.inner_attn_ln.", "attn.norm."),
    ("mlp.ffn_ln.", "mlp.norm."),
    ("mlp.w1.", "mlp.fc1_g."),
    ("mlp.w2.", "mlp.fc1_x."),
    ("mlp.w3.", "mlp.fc2."),
)
# open_clip takes such a tower's sizes from timm's model of this name.
_TIMM_MODELS = {
    "EVA01-g-14": "eva_giant_patch14_224",
    "EVA02-B-16": "eva02_base_patch16_clip_224",
    "EVA02-L-14": "eva02_large_patch14_clip_224",
    "EVA02-L-14-336": "eva02_large_patch14_clip_336",
    "EVA02-E-14": "eva02_enormous_patch14_clip_224",
}


def is_eva(state: State, prefix: str) -> bool:
    """Whether the tensors under `prefix` are an EVA tower's: only it has biases for queries and values alone."""
    return any(f"{prefix}blocks.0.attn.{name}" in state for name in ("q_bias", "q_proj.bias"))


def from_others(state: State, prefix: str) -> State:
    """An image tower under `prefix`, in the publishers' names or timm's, to `visual.*`; other names stay."""
    split = f"{prefix}blocks.0.attn.q_proj.weight" in state
    names = [(theirs, ours) for ours, theirs in _NAMES] if split else []
    return {
        f"visual.{_renamed(name[len(prefix) :], names)}" if name.startswith(prefix) else name: value
        for name, value in state.items()
        if not _ROTATIONS.fullmatch(name)
    }


def to_open_clip(state: State, config: EvaConfig) -> State:
    """`visual.*` to timm's names under open_clip's prefix; other names stay."""
    names = list(_NAMES) if config.sub_norm else []
    return {
        TRUNK + _renamed(name.removeprefix("visual."), names) if name.startswith("visual.") else name: value
        for name, value in state.items()
    }


def with_rotations(state: State, config: EvaConfig) -> State:
    """The state and the tables that the publishers' code expects: [patches, head width], each angle for both of its
    channels, in the weights' dtype, a copy for the tower and for every block."""
    if not config.rope:
        return state
    like = state["visual.pos_embed"]
    tables = rotation_tables(config.grid, config.rope_grid, config.head_width, like.device)
    owners = ["visual.", *(f"visual.blocks.{block}.attn." for block in range(config.layers))]
    added = {
        f"{owner}rope.freqs_{name}": table.repeat_interleave(2, dim=1).to(like.dtype)
        for owner in owners
        for name, table in zip(("cos", "sin"), tables, strict=True)
    }
    return {**state, **added}


def open_clip_vision(config: EvaConfig) -> dict[str, object]:
    """The image tower of open_clip's JSON configuration. ValueError for sizes that none of its models has."""
    plain = replace(config, patch_dropout=0.0, drop_path=0.0)
    for name, timm_model in _TIMM_MODELS.items():
        published = get_config(name).vision
        if isinstance(published, EvaConfig) and replace(published, drop_path=0.0) == plain:
            return {
                "image_size": config.image_size,
                "timm_model_name": timm_model,
                "timm_model_pretrained": False,
                "timm_pool": "token",
                "timm_proj": None,
                "timm_drop_path": config.drop_path,
                "patch_dropout": config.patch_dropout,
            }
    raise value_error(
        "config",
        got=f"an EVA tower of width {config.width}, {config.layers} layers and {config.image_size} pixels",
        want="one of the published sizes, the only ones that open_clip can name",
        fix="load the weights into timm.models.eva.Eva of those sizes, or create a published model",
    )


def _renamed(name: str, names: list[tuple[str, str]]) -> str:
    """The name with the first of (old, new) that is a part of it replaced."""
    for old, new in names:
        if name.startswith("blocks.") and f".{old}" in name:
            return name.replace(f".{old}", f".{new}")
    return name
