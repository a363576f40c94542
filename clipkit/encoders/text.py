# SPDX-License-Identifier: Apache-2.0
"""The text tower. It computes on packed captions only; padding never reaches a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.encoders.attention import packed_attention
from clipkit.encoders.config import TextConfig
from clipkit.encoders.packing import PackedText, pack
from clipkit.encoders.transformer import LayerNorm, TextLayout, Transformer


class TextTower(nn.Module):
    """Causal transformer over packed captions, read at the end-of-text token.

    Its parameters have the names that open_clip's CLIP gives them at its top level; CLIP here extends this class, so
    that a state dict has those names without translation.
    """

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.context_length = config.context_length
        self.vocab_size = config.vocab_size
        self.head_width = config.width // config.heads
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = Transformer(
            config.width, config.layers, config.heads, config.mlp_ratio, config.activation, config.norm_eps
        )
        self.ln_final = LayerNorm(config.width, eps=config.norm_eps)
        self.text_projection = nn.Parameter(torch.empty(config.width, embed_dim))

    def pack(self, tokens: Tensor) -> PackedText:
        """Check and pack padded token rows for this tower; see clipkit.encoders.packing.pack."""
        return pack(tokens, vocab_size=self.vocab_size, context_length=self.context_length)

    def encode_text(self, tokens: Tensor | PackedText, normalize: bool = False) -> Tensor:
        """[n, at most context_length] integer ids, padded as the tokenizer gives them, -> [n, embed_dim].

        Packed text is taken as well: packed on the CPU and moved, it spares the device the one sync of packing.
        normalize: unit length (the norm is taken in float32). Raises as `pack` does.
        """
        text = tokens if isinstance(tokens, PackedText) else self.pack(tokens)
        x = self.token_embedding(text.ids) + F.embedding(text.positions, self.positional_embedding)
        attention = packed_attention(x.device, autocast_dtype(x.device) or x.dtype, self.head_width)
        x = self.ln_final(self.transformer(x, TextLayout(text, attention), True))
        features = (x @ self.text_projection)[text.inverse]
        return unit_length(features) if normalize else features


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast gives matrix products on this device, None where it is off."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def unit_length(features: Tensor) -> Tensor:
    """Rows of [n, d] divided by their Euclidean norm, which is taken in at least float32; the dtype is kept."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(wide, dim=-1).to(features.dtype)
