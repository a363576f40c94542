# SPDX-License-Identifier: Apache-2.0
"""An EVA tower written out the obvious way, and small models of each published form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.encoders import CLIP, CLIPConfig, EvaConfig, TextConfig
from clipkit.encoders.rope import rotation_tables

_COMMON = {"image_size": 16, "patch_size": 4, "width": 32, "layers": 2, "head_width": 16, "rope_grid": 6}
FORMS = {
    "EVA-02": EvaConfig(**_COMMON, hidden=40),
    "EVA-02, hidden width no multiple of 8": EvaConfig(**_COMMON, hidden=42),
    "EVA-01": EvaConfig(**_COMMON, hidden=48, sub_norm=False, rope=False),
    "E": EvaConfig(**_COMMON, hidden=48, sub_norm=False, rope=False, post_norm=True),
}
CPU = torch.device("cpu")
TEXT = TextConfig(context_length=24, vocab_size=600, width=24, heads=2, layers=2)


def small_eva(form: str = "EVA-02", dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: object) -> CLIP:
    """A small model whose every parameter is random and large enough to matter."""
    torch.manual_seed(seed)
    model = CLIP(CLIPConfig(16, FORMS[form], TEXT).replace(overrides))
    for parameter in model.visual.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter) + (parameter.dim() == 1)
    return model.to(dtype)


def eva_features(model: CLIP, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
    """Every patch embedded by convolution and turned, then the kept ones picked; read at the class token."""
    tower = model.visual
    config: EvaConfig = tower.config
    x = F.conv2d(pixels, tower.patch_embed.proj.weight, tower.patch_embed.proj.bias, stride=config.patch_size)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([tower.cls_token.expand(len(x), 1, -1), x], dim=1) + tower.pos_embed
    # every angle for both channels of its pair, no angle for the class token
    cosines, sines = rotation_tables(config.grid, config.rope_grid, config.head_width, CPU, torch.float64)
    cosines = F.pad(cosines, (0, 0, 1, 0), value=1.0) if config.rope else torch.ones(len(tower.pos_embed[0]), 1)
    sines = F.pad(sines, (0, 0, 1, 0)) if config.rope else torch.zeros(len(tower.pos_embed[0]), 1)
    turn = torch.complex(cosines, sines).to(torch.complex128).expand(len(x), -1, -1)
    if kept is not None:
        chosen = F.pad(kept + 1, (1, 0))
        rows = torch.arange(len(x)).unsqueeze(1)
        x, turn = x[rows, chosen], turn[rows, chosen]
    for block in tower.blocks:
        if config.post_norm:
            x = x + _norm(block.norm1, _attention(block.attn, x, turn))
            x = x + _norm(block.norm2, _mlp(block.mlp, x))
        else:
            x = x + _attention(block.attn, _norm(block.norm1, x), turn)
            x = x + _mlp(block.mlp, _norm(block.norm2, x))
    return _norm(tower.norm, x)[:, 0] @ tower.head.weight.T + tower.head.bias


def _norm(norm, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _attention(attn, x: Tensor, turn: Tensor) -> Tensor:
    if attn.sub_norm:
        weight = torch.cat([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight])
    else:
        weight = attn.qkv.weight
    bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
    q, k, v = ((x @ weight.T + bias).unflatten(-1, (3, attn.heads, -1))).permute(2, 0, 3, 1, 4)

    def turned(y: Tensor) -> Tensor:
        pairs = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn.unsqueeze(1)).flatten(-2)

    q, k = turned(q), turned(k)
    out = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    out = out.transpose(1, 2).flatten(2)
    out = _norm(attn.inner_attn_ln, out) if attn.sub_norm else out
    return out @ attn.proj.weight.T + attn.proj.bias


def _mlp(mlp, x: Tensor) -> Tensor:
    if hasattr(mlp, "fc1"):
        return F.gelu(x @ mlp.fc1.weight.T + mlp.fc1.bias) @ mlp.fc2.weight.T + mlp.fc2.bias
    inner = F.silu(x @ mlp.w1.weight.T + mlp.w1.bias) * (x @ mlp.w2.weight.T + mlp.w2.bias)
    return _norm(mlp.ffn_ln, inner) @ mlp.w3.weight.T + mlp.w3.bias
