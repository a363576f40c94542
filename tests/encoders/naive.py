# SPDX-License-Identifier: Apache-2.0
"""Both towers written out the obvious way, on padded text and with explicit softmax; and inputs for the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.encoders import CLIP, CLIPConfig, TextConfig, VisionConfig
from clipkit.encoders.transformer import QuickGELU, ResidualBlock

_ACTIVATIONS = {QuickGELU: lambda y: y * torch.sigmoid(1.702 * y), nn.GELU: F.gelu, nn.ReLU: lambda y: y.clamp_min(0)}

TINY = CLIPConfig(
    16,
    VisionConfig(image_size=16, patch_size=4, width=32, layers=2, head_width=16),
    TextConfig(context_length=24, vocab_size=600, width=24, heads=2, layers=3),
)


def tiny_model(dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: object) -> CLIP:
    """A small model whose every parameter, biases too, is random."""
    torch.manual_seed(seed)
    model = CLIP(TINY.replace(overrides))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


def padded_tokens(lengths: list[int], context: int, vocab: int = 600, seed: int = 0) -> Tensor:
    """Rows of random ids of the given lengths, each closed by the largest id, then zeros."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(len(lengths), context, dtype=torch.int64)
    for row, length in zip(rows, lengths, strict=True):
        row[: length - 1] = torch.randint(1, vocab - 2, (length - 1,), generator=generator)
        row[length - 1] = vocab - 1
    return rows


def text_features(model: CLIP, tokens: Tensor) -> Tensor:
    """Every position computed, causal mask, read at the row's largest id."""
    count, length = tokens.shape
    x = model.token_embedding.weight[tokens] + model.positional_embedding[:length]
    mask = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
    for block in model.transformer.blocks():
        x = _block(block, x, mask)
    x = model.ln_final(x)
    return x[torch.arange(count), tokens.argmax(dim=-1)] @ model.text_projection


def image_features(model: CLIP, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
    """Every patch embedded by convolution, then the kept ones picked; read at the class token (or their mean)."""
    visual = model.visual
    x = F.conv2d(pixels, visual.conv1.weight, stride=visual.config.patch_size).flatten(2).transpose(1, 2)
    x = x + visual.positional_embedding[1:]
    if kept is not None:
        x = x[torch.arange(len(x)).unsqueeze(1), kept]
    first = visual.class_embedding + visual.positional_embedding[0]
    x = visual.ln_pre(torch.cat([first.expand(len(x), 1, -1), x], dim=1))
    for block in visual.transformer.blocks():
        x = _block(block, x, None)
    x = visual.ln_post(x)
    return (x[:, 0] if visual.config.pool == "tok" else x[:, 1:].mean(1)) @ visual.proj


def _block(block: ResidualBlock, x: Tensor, mask: Tensor | None) -> Tensor:
    count, length, width = x.shape
    heads = block.attn.heads
    y = F.layer_norm(x, (width,), block.ln_1.weight, block.ln_1.bias, block.ln_1.eps)
    q, k, v = (y @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (t.reshape(count, length, heads, -1).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / (width // heads) ** 0.5
    scores = scores if mask is None else scores + mask
    y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(count, length, width)
    x = x + y @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
    y = F.layer_norm(x, (width,), block.ln_2.weight, block.ln_2.bias, block.ln_2.eps)
    y = y @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
    y = _ACTIVATIONS[type(block.mlp.activation)](y)
    return x + y @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias
