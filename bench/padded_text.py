# SPDX-License-Identifier: Apache-2.0
"""The text tower as others compute it, on every position of the context: this library's blocks over padded captions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipkit.encoders.text import unit_length


class PaddedLayout:
    """[n, context, width], causal, every position computed whether a caption reaches it or not."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[n, context, heads, head width]."""
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return attended.transpose(1, 2)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Not asked for: the peer computes every position of every block."""
        raise NotImplementedError


def encode_padded_text(model: Any, tokens: Tensor, normalize: bool = True) -> Tensor:
    """[n, embed_dim], of the same weights, as a transformer over padded text computes it."""
    tokens = torch.nn.functional.pad(tokens, (0, model.context_length - tokens.shape[1]))
    x = model.token_embedding(tokens) + model.positional_embedding
    x = model.ln_final(model.transformer(x, PaddedLayout(), False))
    pooled = x[torch.arange(len(tokens)), tokens.argmax(dim=1)]
    features = pooled @ model.text_projection
    return unit_length(features) if normalize else features
