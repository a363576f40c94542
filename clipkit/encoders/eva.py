# SPDX-License-Identifier: Apache-2.0
"""EVA-CLIP's vision transformers (Sun et al. 2023), with the names that their publishers gave the parameters."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.encoders.config import EvaConfig
from clipkit.encoders.fused import add_norm, add_post_norm, rotate, swiglu_norm
from clipkit.encoders.masking import replace_patches
from clipkit.encoders.patches import embed_patches, sample_patches
from clipkit.encoders.rope import Rotation, rotation_tables
from clipkit.encoders.transformer import LayerNorm, PictureLayout, run_block

_ALIGNED = 64
"""Columns that a hidden width is padded to a multiple of, for the products alone. EVA02-L's 2730 makes rows of 5,460
bytes in 16 bit, which no tensor core reads whole; 2,752 costs 0.8 % more products. Widths that are multiples of 8 stay.
"""


class EvaAttention(nn.Module):
    """Self-attention whose keys have no bias: added to every key alike, one would not change the softmax.

    With `sub_norm` the three projections are apart and the heads' outputs are normalised before the last one.
    """

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.sub_norm = config.sub_norm
        if config.sub_norm:
            self.q_proj = nn.Linear(width, width, bias=False)
            self.k_proj = nn.Linear(width, width, bias=False)
            self.v_proj = nn.Linear(width, width, bias=False)
            self.inner_attn_ln = LayerNorm(width, eps=config.norm_eps)
        else:
            self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None, pooled_only: bool) -> Tensor:
        """[n, tokens, width] -> the same; with `pooled_only` [n, 1, width], the class token's."""
        layout = PictureLayout()
        asking = layout.pooled(x) if pooled_only else x
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in self._projections(asking, x))
        if rotation is not None:
            query, key = rotate(query, key, *rotation)
        out = layout.attend(query, key, value).flatten(-2)
        return self.proj(self.inner_attn_ln(out) if self.sub_norm else out)

    def _projections(self, asking: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.sub_norm:
            query, key, value = self.q_proj.weight, self.k_proj.weight, self.v_proj.weight
        else:
            query, key, value = self.qkv.weight.chunk(3)
        return F.linear(asking, query, self.q_bias), F.linear(x, key), F.linear(x, value, self.v_bias)


class SwiGLU(nn.Module):
    """w3 norm(silu(w1 x) * w2 x) (Shazeer 2020, with the norm of Wang et al. 2022, "Foundation transformers")."""

    def __init__(self, width: int, hidden: int, norm_eps: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.ffn_ln = LayerNorm(hidden, eps=norm_eps)
        self.w3 = nn.Linear(hidden, width)
        self.spare = -hidden % _ALIGNED if hidden % 8 else 0

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same."""
        norm = self.ffn_ln
        if not self.spare:
            return self.w3(swiglu_norm(self.w1(x), self.w2(x), norm.weight, norm.bias, norm.eps))
        gate, value = (self._widened(x, layer) for layer in (self.w1, self.w2))
        inner = swiglu_norm(gate, value, norm.weight, norm.bias, norm.eps)
        return F.linear(inner, F.pad(self.w3.weight, (0, self.spare)), self.w3.bias)

    def _widened(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """The layer's output with `spare` columns of 0 behind it: the parameters keep their published shapes."""
        return F.linear(x, F.pad(layer.weight, (0, 0, 0, self.spare)), F.pad(layer.bias, (0, self.spare)))


class EvaMLP(nn.Module):
    """Widen, GELU, narrow."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class EvaBlock(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); with post_norm x + norm(attention x), then x + norm(mlp x).

    drop_path: share of the samples that a branch is left out for in training; the others' is scaled up instead.
    """

    def __init__(self, config: EvaConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width, eps=config.norm_eps)
        self.attn = EvaAttention(config)
        self.norm2 = LayerNorm(config.width, eps=config.norm_eps)
        self.mlp: SwiGLU | EvaMLP
        if config.sub_norm:
            self.mlp = SwiGLU(config.width, config.hidden, config.norm_eps)
        else:
            self.mlp = EvaMLP(config.width, config.hidden)
        self.post_norm = config.post_norm
        self.drop_path = drop_path

    def forward(self, x: Tensor, rotation: Rotation | None, pooled_only: bool = False) -> Tensor:
        """[n, tokens, width] -> the same; with `pooled_only` [n, 1, width], the class token alone."""
        first, second = self.norm1, self.norm2
        attended = self.attn(x if self.post_norm else first(x), rotation, pooled_only)
        x = x[:, :1] if pooled_only else x
        if self.post_norm:
            x = add_post_norm(x, attended, first.weight, first.bias, first.eps)
            return add_post_norm(x, self.mlp(x), second.weight, second.bias, second.eps)
        x, normed = add_norm(x, self._thinned(attended), second.weight, second.bias, second.eps)
        return x + self._thinned(self.mlp(normed))

    def _thinned(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        kept = 1.0 - self.drop_path
        return branch * (branch.new_empty(branch.shape[0], 1, 1).bernoulli_(kept) / kept)


class PatchEmbedding(nn.Module):
    """The weight and bias that a patch's pixels are multiplied by, under their published name."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=size, stride=size)


class EvaTower(nn.Module):
    """Patches, class token, learnt positions, blocks that turn their queries and keys, norm, head."""

    def __init__(self, config: EvaConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.patch_dropout = config.patch_dropout
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbedding(width, config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, config.grid**2 + 1, width))
        steps = max(1, config.layers - 1)
        self.blocks = nn.ModuleList(EvaBlock(config, config.drop_path * i / steps) for i in range(config.layers))
        self.norm = LayerNorm(width, eps=config.norm_eps)
        self.head = nn.Linear(width, embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n, embed_dim], not normalised."""
        x, kept = self._tokens(pixels)
        return self.head(self.norm(self._blocks(x, kept, pooled_only=True)[:, 0]))

    def encode_patches(self, pixels: Tensor, hidden: Tensor | None = None, token: Tensor | None = None) -> Tensor:
        """[n, 3, H, W] -> normalised [n, patches, width], before the head. No patch is dropped.

        hidden: int64 [n, count], patches whose embeddings `token` [width] takes the place of.
        """
        x = self._embedded(pixels, None)
        if hidden is not None and token is not None:
            x = replace_patches(x, self.pos_embed[0, 1:], hidden, token)
        return self.norm(self._blocks(self._behind_class(x), None, pooled_only=False)[:, 1:])

    def block_list(self) -> list[nn.Module]:
        """The transformer blocks, first to last."""
        return [cast(EvaBlock, block) for block in self.blocks]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def _rotation(self, kept: Tensor | None, x: Tensor) -> Rotation | None:
        config = self.config
        if not config.rope:
            return None
        dtype = torch.promote_types(x.dtype, torch.float32)
        return Rotation(*rotation_tables(config.grid, config.rope_grid, config.head_width, x.device, dtype), kept)

    def _tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """[n, 1 + kept patches, width], and which patches those are (None: all, in order)."""
        count, grid = pixels.shape[0], self.config.grid
        kept = None
        if self.training and self.patch_dropout > 0:
            kept = sample_patches(count, grid**2, self.patch_dropout, pixels.device)
        return self._behind_class(self._embedded(pixels, kept)), kept

    def _embedded(self, pixels: Tensor, kept: Tensor | None) -> Tensor:
        layer = self.patch_embed.proj
        return embed_patches(pixels, layer.weight, layer.bias, self.pos_embed[0, 1:], kept)

    def _behind_class(self, embedded: Tensor) -> Tensor:
        first = (self.cls_token[0] + self.pos_embed[0, :1]).to(embedded.dtype)
        return torch.cat([first.expand(embedded.shape[0], 1, -1), embedded], dim=1)

    def _blocks(self, x: Tensor, kept: Tensor | None, *, pooled_only: bool) -> Tensor:
        rotation = self._rotation(kept, x)
        final = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            # what the last block does to patches could not reach the class token any more
            x = run_block(block, (x, rotation, pooled_only and index == final), self.grad_checkpointing)
        return x
