# SPDX-License-Identifier: Apache-2.0
"""Operations between the matrix products of a block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rotate(
    query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Turn each pair of channels of all tokens but the first by its patch's angle."""
    c, s = (t if places is None else t[places] for t in (cosines, sines))
    c, s = c.unsqueeze(-2), s.unsqueeze(-2)

    def turn(x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        even, odd = x[:, 1:].to(wide).unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([even * c - odd * s, odd * c + even * s], dim=-1).flatten(-2)
        return torch.cat([x[:, :1], turned.to(x.dtype)], dim=1)

    return query if query.shape[1] == 1 else turn(query), turn(key)


def swiglu_norm(gate: Tensor, value: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of silu(gate) * value over the first columns, as many as there are weights; 0 behind them."""
    hidden = weight.shape[0]
    y = F.silu(gate[..., :hidden]) * value[..., :hidden]
    y = F.layer_norm(y, (hidden,), weight, bias, eps).to(gate.dtype)
    return F.pad(y, (0, gate.shape[-1] - hidden))


def add_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + branch, its LayerNorm)."""
    x = x + branch
    return x, F.layer_norm(x, weight.shape, weight, bias, eps).to(x.dtype)


def add_post_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x + LayerNorm(branch)."""
    return x + F.layer_norm(branch, weight.shape, weight, bias, eps).to(x.dtype)
