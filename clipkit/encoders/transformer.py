# SPDX-License-Identifier: Apache-2.0
"""The pre-norm transformer block that both towers share, with open_clip's parameter names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, noop_context_fn

from clipkit.encoders.attention import PackedAttention, dense_attention
from clipkit.encoders.packing import PackedText

Contexts = Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]


class Layout(Protocol):
    """How the tokens of a batch lie in memory: who attends to whom, and which token's feature is read at the end."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention over [..., heads, head width]."""
        ...

    def pooled(self, tokens: Tensor) -> Tensor:
        """The rows of [..., width] that are read at the end; `attend` takes their queries too."""
        ...


class PictureLayout:
    """[n, tokens, width], every token sees every other, the first one is read."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[n, queries, heads, head width]."""
        return dense_attention(query, key, value)

    def pooled(self, tokens: Tensor) -> Tensor:
        """[n, 1, width]: the class token."""
        return tokens[:, :1]


class TextLayout:
    """[T, width], packed captions, causal, the end-of-text tokens are read."""

    def __init__(self, text: PackedText, attention: PackedAttention) -> None:
        self._text = text
        self._attention = attention

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[T or n, heads, head width]."""
        return self._attention(query, key, value, self._text)

    def pooled(self, tokens: Tensor) -> Tensor:
        """[n, width]: the end-of-text tokens."""
        return tokens[self._text.last]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * torch.sigmoid(1.702 * x)


def activation(name: str) -> nn.Module:
    """The module of an activation's configuration name."""
    return {"gelu": nn.GELU, "quick_gelu": QuickGELU, "relu": nn.ReLU}[name]()


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose result keeps the input's dtype, also where autocast widens it."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., width]."""
        return super().forward(x).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with torch.nn.MultiheadAttention's parameters."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: Layout, pooled_only: bool = False) -> Tensor:
        """[..., width]; with `pooled_only`, keys and values of all tokens but queries of the pooled ones alone."""
        width = x.shape[-1]
        if pooled_only:
            query = F.linear(layout.pooled(x), self.in_proj_weight[:width], self.in_proj_bias[:width])
            key, value = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        else:
            query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        split = (self.heads, width // self.heads)
        out = layout.attend(query.unflatten(-1, split), key.unflatten(-1, split), value.unflatten(-1, split))
        return self.out_proj(out.flatten(-2))


class MLP(nn.Module):
    """Widen, activate, narrow."""

    def __init__(self, width: int, hidden: int, activation_name: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.activation = activation(activation_name)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same."""
        return self.c_proj(self.activation(self.c_fc(x)))


class ResidualBlock(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, activation_name: str, norm_eps: float) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads)
        self.ln_2 = LayerNorm(width, eps=norm_eps)
        self.mlp = MLP(width, int(width * mlp_ratio), activation_name)

    def forward(self, x: Tensor, layout: Layout, pooled_only: bool = False) -> Tensor:
        """[..., width] -> the same; with `pooled_only` just the rows that `layout.pooled` names."""
        attended = self.attn(self.ln_1(x), layout, pooled_only)
        x = (layout.pooled(x) if pooled_only else x) + attended
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks.

    When only one token of each sequence is read at the end, the last block computes its queries, its projection and
    its MLP for that token alone. Nothing else of that block could reach the output, so the result is the same.
    """

    def __init__(
        self, width: int, layers: int, heads: int, mlp_ratio: float, activation_name: str, norm_eps: float
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.resblocks = nn.ModuleList(
            ResidualBlock(width, heads, mlp_ratio, activation_name, norm_eps) for _ in range(layers)
        )

    def blocks(self) -> list[ResidualBlock]:
        """First to last."""
        return [cast(ResidualBlock, block) for block in self.resblocks]

    def forward(self, x: Tensor, layout: Layout, pooled_only: bool) -> Tensor:
        """[..., width] -> the pooled rows, or all of them."""
        final = len(self.resblocks) - 1
        for index, block in enumerate(self.resblocks):
            x = run_block(block, (x, layout, pooled_only and index == final), self.grad_checkpointing)
        return x


def run_block(
    block: nn.Module, arguments: Sequence[object], recompute: bool, contexts: Contexts = noop_context_fn
) -> Tensor:
    """Call a block; with `recompute`, keep its inputs only and run it again in the backward pass.

    contexts: makes what surrounds the first run and the second one.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *arguments, use_reentrant=False, context_fn=contexts)
    return block(*arguments)
