# SPDX-License-Identifier: Apache-2.0
"""`clipkit.engine.rotation` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.engine.precision import widen
from clipkit.engine.torch_backend.pieces import pieces


def rotate(
    query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None, *, inverse: bool
) -> tuple[Tensor, Tensor]:
    """See `clipkit.engine.rotation.rotate`."""
    results = (query.new_empty(query.shape), key.new_empty(key.shape))
    for some in pieces(key):
        there = None if places is None else places[some]
        for result, tokens in zip(results, (query, key), strict=True):
            result[some] = turned(tokens[some], cosines, -sines if inverse else sines, there)
    return results


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
