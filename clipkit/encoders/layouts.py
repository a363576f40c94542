# SPDX-License-Identifier: Apache-2.0
"""How other projects name a CLIP's tensors, translated to the names used here (open_clip's CLIP class)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.encoders.eva_layout import TRUNK, from_others, is_eva
from clipkit.encoders.transformers_layout import MARK, TEXT_MARK, from_transformers

State = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
TEXT_NAMES = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")

_TIMM_NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"patch_embed\.proj\.(weight|bias)", r"conv1.\1"),
        (r"cls_token", "class_embedding"),
        (r"pos_embed", "positional_embedding"),
        (r"norm_pre\.(weight|bias)", r"ln_pre.\1"),
        (r"norm\.(weight|bias)", r"ln_post.\1"),
        (r"blocks\.(\d+)\.norm([12])\.(weight|bias)", r"transformer.resblocks.\1.ln_\2.\3"),
        (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"transformer.resblocks.\1.attn.in_proj_\2"),
        (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"transformer.resblocks.\1.attn.out_proj.\2"),
        (r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
        (r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
    )
]


@dataclass(frozen=True)
class Layout:
    """A recognised naming: its name, whether only the image tower is in it, and the translation."""

    name: str
    image_only: bool
    translate: Callable[[State], State]


def unwrap(checkpoint: Mapping[str, object]) -> State:
    """The tensors of a checkpoint, out of training wrappers ("state_dict") and module prefixes ("module.")."""
    for name in _WRAPPERS:
        inner = checkpoint.get(name)
        if isinstance(inner, Mapping):
            return unwrap(inner)
    state = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES * 2:
        if state and all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    return state


def recognise(state: State) -> Layout | None:
    """Which naming a state dict has; None when it is none of the known ones."""
    if is_eva(state, TRUNK):
        return Layout("open_clip with an EVA image tower", False, lambda s: _flat_text(from_others(s, TRUNK)))
    if is_eva(state, "visual."):
        name = "EVA-CLIP" if "text.token_embedding.weight" in state else "clipkit"
        return Layout(name, False, lambda s: _flat_text(from_others(s, "visual.")))
    if is_eva(state, ""):
        return Layout("EVA image tower", True, lambda s: from_others(s, ""))
    if "visual.trunk.patch_embed.proj.weight" in state:
        return Layout("open_clip with a timm image tower", False, lambda s: _flat_text(_timm(s, "visual.trunk.")))
    if "patch_embed.proj.weight" in state:
        return Layout("timm image tower", True, lambda s: _timm(s, ""))
    if MARK in state:
        return Layout("transformers CLIPModel", False, from_transformers)
    if "text.token_embedding.weight" in state:
        return Layout("open_clip CustomTextCLIP", False, _flat_text)
    if "token_embedding.weight" in state:
        if any(name in state for name in _OPENAI_NUMBERS):
            return Layout("OpenAI CLIP", False, _without_numbers)
        return Layout("open_clip CLIP" if "visual.conv1.weight" in state else "clipkit", False, dict)
    if TEXT_MARK in state:
        return Layout("transformers CLIPTextModel", False, from_transformers)
    if any(name.startswith("visual.") for name in state):
        return Layout("clipkit image tower", True, dict)
    return None


def custom_text_names(state: State) -> State:
    """Our names to those of open_clip's CustomTextCLIP: the text tower under "text."."""
    return {f"text.{name}" if name.startswith(TEXT_NAMES) else name: value for name, value in state.items()}


def _flat_text(state: State) -> State:
    return {name.removeprefix("text."): value for name, value in state.items()}


def _without_numbers(state: State) -> State:
    return {name: value for name, value in state.items() if name not in _OPENAI_NUMBERS}


def _timm(state: State, prefix: str) -> State:
    """timm's names (under `prefix`) to `visual.*`; names it does not know stay as they are."""
    translated: State = {}
    for name, value in state.items():
        ours = _timm_name(name[len(prefix) :]) if name.startswith(prefix) else None
        translated[f"visual.{ours}" if ours else name] = value
    for name in ("visual.class_embedding", "visual.positional_embedding"):
        if name in translated:
            translated[name] = translated[name].flatten(0, -2).squeeze(0)
    _fold_patch_bias(translated)
    _projection(translated, prefix)
    return translated


def _timm_name(name: str) -> str | None:
    for pattern, ours in _TIMM_NAMES:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(ours)
    return None


def _fold_patch_bias(state: State) -> None:
    """A bias of the patch embedding is added to every patch, and so is its position: add the one to the other."""
    positions = state.get("visual.positional_embedding")
    if positions is not None and "visual.conv1.bias" in state:
        bias = state.pop("visual.conv1.bias")
        state["visual.positional_embedding"] = torch.cat([positions[:1], positions[1:] + bias])


def _projection(state: State, prefix: str) -> None:
    """A head without bias is the projection, transposed."""
    for head in (f"{prefix}head", "visual.head.proj"):
        if f"{head}.weight" in state and f"{head}.bias" not in state:
            state["visual.proj"] = state.pop(f"{head}.weight").T
