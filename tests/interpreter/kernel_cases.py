# SPDX-License-Identifier: Apache-2.0
"""Cases that every implementation of the forward statistics must pass: shared by interpreter and GPU tests."""

from __future__ import annotations

import torch

# (N, M, d): single elements, one below and above a tile, widths that are no multiple of a K block, several tiles.
SHAPES = [(1, 1, 6), (2, 63, 96), (65, 1, 6), (63, 65, 96), (64, 128, 64), (127, 130, 640), (130, 2, 1152)]


def unit_features(rows: int, width: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Normalised random rows, rounded to the dtype."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(features, dim=1).to(dtype)


def cone_with_outliers(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, list[int], list[int]]:
    """Two towers in one narrow cone, but for some rows of each that point the other way: at scale 100 their logits lie
    near -100 while every tile's largest is near 100. Returns (x, y, odd rows of x, odd rows of y)."""
    generator = torch.Generator().manual_seed(5)
    axis = torch.randn(48, generator=generator, dtype=torch.float64)
    x = axis + 0.3 * torch.randn(140, 48, generator=generator, dtype=torch.float64)
    y = axis + 0.3 * torch.randn(150, 48, generator=generator, dtype=torch.float64)
    odd_x, odd_y = [3, 64, 139], [0, 77]
    x[odd_x] *= -1
    y[odd_y] *= -1
    return (
        torch.nn.functional.normalize(x, dim=1).to(dtype),
        torch.nn.functional.normalize(y, dim=1).to(dtype),
        odd_x,
        odd_y,
    )


def exact(
    x: torch.Tensor, y: torch.Tensor, scale: float, diagonal: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column LSEs in float64 of the rounded inputs, without the pairs (i, diagonal + i)."""
    logits = float(torch.tensor(scale, dtype=torch.float32)) * (x.double() @ y.double().T)
    if diagonal is not None:
        logits.diagonal(diagonal).fill_(-torch.inf)
    return logits.logsumexp(1), logits.logsumexp(0)


def bound(x: torch.Tensor, y: torch.Tensor, scale: float) -> float:
    """Absolute error allowed: a few roundings of the largest logit, and the fp32 sums."""
    logits = abs(scale) * (x.double() @ y.double().T).abs()
    return 1e-6 + 3e-7 * float(logits.max())
