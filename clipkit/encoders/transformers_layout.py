# SPDX-License-Identifier: Apache-2.0
"""The names of Hugging Face transformers' CLIPModel, both ways.

It keeps queries, keys and values apart and stores the two projections transposed.
"""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]

MARK = "vision_model.embeddings.patch_embedding.weight"
TEXT_MARK = "text_model.embeddings.token_embedding.weight"

_STACKS = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
)
_IN_BLOCK = (
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("attn.out_proj.", "self_attn.out_proj."),
)
_SINGLE = (
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.conv1.weight", MARK),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre.weight", "vision_model.pre_layrnorm.weight"),
    ("visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
    ("visual.ln_post.weight", "vision_model.post_layernorm.weight"),
    ("visual.ln_post.bias", "vision_model.post_layernorm.bias"),
    ("visual.proj", "visual_projection.weight"),
    ("token_embedding.weight", TEXT_MARK),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.weight", "text_model.final_layer_norm.weight"),
    ("ln_final.bias", "text_model.final_layer_norm.bias"),
    ("text_projection", "text_projection.weight"),
)
_TRANSPOSED = ("visual.proj", "text_projection")
_BUFFERS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
_QKV = ("q", "k", "v")


def from_transformers(state: State) -> State:
    """CLIPModel's names to ours; names it does not know stay as they are."""
    single = {theirs: ours for ours, theirs in _SINGLE}
    translated: State = {}
    for name, value in state.items():
        if ".self_attn.q_proj." in name:
            parts = [state.get(name.replace(".q_proj.", f".{part}_proj.")) for part in _QKV]
            ours = _in_block(name, forward=False).replace(".self_attn.q_proj.", ".attn.in_proj_")
            translated[ours] = torch.cat([part for part in parts if part is not None])
        elif ".self_attn.k_proj." not in name and ".self_attn.v_proj." not in name and name not in _BUFFERS:
            ours = single.get(name) or _in_block(name, forward=False)
            translated[ours] = value.T if ours in _TRANSPOSED else value
    return translated


def to_transformers(state: State) -> State:
    """Our names to CLIPModel's. What has to be cut or transposed is copied, so that safetensors accepts the result."""
    single = dict(_SINGLE)
    translated: State = {}
    for name, value in state.items():
        if ".attn.in_proj_" in name:
            for part, rows in zip(_QKV, value.chunk(3), strict=True):
                theirs = name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")
                translated[_in_block(theirs, forward=True)] = rows.clone()
        else:
            theirs = single.get(name) or _in_block(name, forward=True)
            translated[theirs] = value.T.contiguous() if name in _TRANSPOSED else value
    return translated


def _in_block(name: str, *, forward: bool) -> str:
    """A block's parameter: the stack's prefix, the number, then the name inside the block."""
    for pair in _STACKS:
        stack, other = pair if forward else pair[::-1]
        if name.startswith(stack):
            number, _, leaf = name[len(stack) :].partition(".")
            for names in _IN_BLOCK:
                old, new = names if forward else names[::-1]
                if leaf.startswith(old):
                    leaf = new + leaf[len(old) :]
                    break
            return f"{other}{number}.{leaf}"
    return name
