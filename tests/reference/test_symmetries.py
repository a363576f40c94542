# SPDX-License-Identifier: Apache-2.0
"""What a loss must not see: the order of the pairs, the basis of the embedding space, which tower is called image."""

from __future__ import annotations

import pytest
import torch

from tests.reference.cases import CASES, value_and_gradients

ROWS, WIDTH = 17, 6
SWAPPED = {"a": "b", "b": "a", "A": "B", "B": "A", "u": "v", "v": "u"}
ONE_DIRECTIONAL = ("info_nce", "linear_bce")


def _equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pairs_may_come_in_any_order(case):
    inputs, constants = case.make(ROWS, WIDTH, torch.float64)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))

    def shuffled(values):
        return {name: value if name in case.pooled else value[order] for name, value in values.items()}

    _equal(
        value_and_gradients(case.ours, shuffled(inputs), shuffled(constants)),
        {"loss": (straight := value_and_gradients(case.ours, inputs, constants)).pop("loss"), **shuffled(straight)},
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_embedding_space_may_be_rotated(case):
    inputs, constants = case.make(ROWS, WIDTH, torch.float64)
    random = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(random).Q

    def rotated(values):
        return {n: v @ rotation if v.dim() == 2 and v.shape[1] == WIDTH else v for n, v in values.items()}

    _equal(
        value_and_gradients(case.ours, rotated(inputs), rotated(constants)),
        rotated(value_and_gradients(case.ours, inputs, constants)),
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in ONE_DIRECTIONAL], ids=lambda case: case.name)
def test_the_towers_may_change_places(case):
    inputs, constants = case.make(ROWS, WIDTH, torch.float64)

    def swapped(values):
        return {SWAPPED.get(name, name): value for name, value in values.items()}

    _equal(
        value_and_gradients(case.ours, swapped(inputs), swapped(constants)),
        swapped(value_and_gradients(case.ours, inputs, constants)),
    )
