# SPDX-License-Identifier: Apache-2.0
"""Blocks of hidden patches: how many, of what kind, and by what they are decided."""

from __future__ import annotations

import pytest
import torch

from clipkit.encoders.masking import block_masks, hidden_patches, replace_patches

GRIDS = (4, 8, 14, 16, 24)


def as_grid(hidden: torch.Tensor, grid: int) -> torch.Tensor:
    """bool [n, grid, grid]."""
    return torch.zeros(hidden.shape[0], grid * grid, dtype=torch.bool).scatter(1, hidden, True).view(-1, grid, grid)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("share", [0.05, 0.4, 0.75, 0.999])
def test_every_picture_has_exactly_the_share_hidden(grid: int, share: float) -> None:
    count = hidden_patches(grid**2, share)
    assert count == min(max(1, round(share * grid**2)), grid**2 - 1)
    hidden = block_masks(torch.arange(200), grid=grid, count=count, seed=3, step=5)
    assert hidden.shape == (200, count)
    assert hidden.dtype == torch.int64
    assert (as_grid(hidden, grid).sum(dim=(1, 2)) == count).all(), "each patch once"


def test_published_counts() -> None:
    assert [hidden_patches(grid**2, 0.4) for grid in (14, 16)] == [78, 102]


def test_masks_are_functions_of_seed_step_and_sample_alone() -> None:
    def masks(ids: list[int], seed: int = 1, step: int = 2) -> torch.Tensor:
        return block_masks(torch.tensor(ids, dtype=torch.int64), grid=8, count=26, seed=seed, step=step)

    whole = masks([5, 6, 2**40, 8])
    assert torch.equal(masks([2**40, 5]), whole[[2, 0]])
    assert masks([]).shape == (0, 26)
    others = [masks([5], seed=2), masks([5], step=3), masks([6]), masks([5 + 2**32]), masks([5], seed=1 + 2**33)]
    assert all(not torch.equal(other.sort().values, whole[:1].sort().values) for other in others)


def test_what_is_hidden_lies_in_blocks() -> None:
    """Neighbours of hidden patches are hidden far more often than the share of all patches, 0.4."""
    masks = as_grid(block_masks(torch.arange(2000), grid=14, count=78, seed=0, step=0), 14)
    beside = (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, :-1].sum()
    below = (masks[:, 1:] & masks[:, :-1]).sum() / masks[:, :-1].sum()
    assert beside > 0.85
    assert below > 0.85


def test_no_side_is_preferred() -> None:
    masks = as_grid(block_masks(torch.arange(20_000), grid=8, count=26, seed=0, step=0), 8)
    often = masks.float().mean(dim=0)
    for turned in (often.flip(0), often.flip(1), often.T):
        assert (often - turned).abs().max() < 0.02  # five standard errors of a difference
    assert often.max() / often.min() > 3, (
        "blocks lie within the picture, and so cover its middle more often than corners"
    )


def test_the_token_takes_the_hidden_patches_places_and_keeps_their_positions() -> None:
    embedded, positions, token = torch.randn(2, 4, 3), torch.randn(4, 3), torch.randn(3)
    found = replace_patches(embedded, positions, torch.tensor([[1, 3], [0, 1]]), token)
    for picture, hidden in enumerate(([1, 3], [0, 1])):
        for patch in range(4):
            wanted = token + positions[patch] if patch in hidden else embedded[picture, patch]
            assert torch.equal(found[picture, patch], wanted)
