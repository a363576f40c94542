# SPDX-License-Identifier: Apache-2.0
"""The vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipkit.encoders.config import VisionConfig
from clipkit.encoders.masking import replace_patches
from clipkit.encoders.patches import embed_patches, sample_patches
from clipkit.encoders.transformer import LayerNorm, PictureLayout, Transformer


class VisionTransformer(nn.Module):
    """Patches, class token, learnt positions, pre-norm blocks, projection; open_clip's parameter names."""

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.patch_dropout = config.patch_dropout
        self.conv1 = nn.Conv2d(3, width, kernel_size=config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(config.grid**2 + 1, width))
        self.ln_pre = LayerNorm(width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.transformer = Transformer(
            width, config.layers, config.heads, config.mlp_ratio, config.activation, config.norm_eps
        )
        self.ln_post = LayerNorm(width, eps=config.norm_eps)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n, embed_dim], not normalised."""
        x = self.ln_pre(self._tokens(pixels))
        by_class_token = self.config.pool == "tok"
        x = self.ln_post(self.transformer(x, PictureLayout(), by_class_token))
        pooled = x[:, 0] if by_class_token else x[:, 1:].mean(dim=1)
        return pooled @ self.proj

    def encode_patches(self, pixels: Tensor, hidden: Tensor | None = None, token: Tensor | None = None) -> Tensor:
        """[n, 3, H, W] -> normalised [n, patches, width], before the projection. No patch is dropped.

        hidden: int64 [n, count], patches whose embeddings `token` [width] takes the place of.
        """
        x = self._embedded(pixels, None)
        if hidden is not None and token is not None:
            x = replace_patches(x, self.positional_embedding[1:], hidden, token)
        x = self.transformer(self.ln_pre(self._behind_class(x)), PictureLayout(), False)
        return self.ln_post(x[:, 1:])

    def block_list(self) -> list[nn.Module]:
        """The transformer blocks, first to last."""
        return [*self.transformer.blocks()]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.transformer.grad_checkpointing = enable

    def _tokens(self, pixels: Tensor) -> Tensor:
        """[n, 1 + kept patches, width]: class token and embedded patches, positions added."""
        kept = None
        if self.training and self.patch_dropout > 0:
            kept = sample_patches(pixels.shape[0], self.config.grid**2, self.patch_dropout, pixels.device)
        return self._behind_class(self._embedded(pixels, kept))

    def _embedded(self, pixels: Tensor, kept: Tensor | None) -> Tensor:
        return embed_patches(pixels, self.conv1.weight, None, self.positional_embedding[1:], kept)

    def _behind_class(self, embedded: Tensor) -> Tensor:
        first = (self.class_embedding + self.positional_embedding[0]).to(embedded.dtype)
        return torch.cat([first.expand(embedded.shape[0], 1, -1), embedded], dim=1)
