# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.rotation` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.precision import widen
from clipkit.engine.torch_backend.pieces import in_pieces


def rotate(
    query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None, *, inverse: bool
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.rotation.rotate`."""
    sines = -sines if inverse else sines

    def both(query: Tensor, key: Tensor, places: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(turned(tokens, cosines, sines, places) for tokens in (query, key))

    turned_query, turned_key = in_pieces(both, query, key, places)
    # an operator returns no argument of its own
    return turned_query.clone() if query.shape[1] == 1 else turned_query, turned_key


def turned(tokens: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None) -> Tensor:
    """[n, tokens, heads, d] of queries or of keys, rounded once; a lone class token stays as it is."""
    if tokens.shape[1] == 1:
        return tokens
    even, odd = widen(tokens[:, 1:]).unflatten(-1, (-1, 2)).unbind(-1)
    # [n or 1, tokens, 1 head, d / 2]
    rows = slice(even.shape[1]) if places is None else places
    cosine, sine = cosines[rows].unsqueeze(-2), sines[rows].unsqueeze(-2)
    pairs = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1)
    return torch.cat((tokens[:, :1], pairs.flatten(-2).to(tokens.dtype)), dim=1)
