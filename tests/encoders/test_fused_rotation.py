# SPDX-License-Identifier: Apache-2.0
"""What rotary positions must do: known answers, lengths kept, relative positions, the class token, patch dropout."""

from __future__ import annotations

import math

import pytest
import torch

from clipkit.encoders.fused import rotate
from clipkit.engine import cpu_backend

GRID, WIDTH = 6, 64


@pytest.fixture(params=["torch", "cpu"])
def backend(request):
    if request.param == "cpu" and cpu_backend.obstacle(torch.device("cpu"), torch.float32):
        pytest.skip("clipkit was installed without its compiled part")
    return request.param


def tables(grid=GRID, width=WIDTH, side=16, dtype=torch.float32):
    """EVA02's: a quarter of the channels' frequencies by row, as many by column, places stretched to a side of 16."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) * 4 / width)
    line = torch.arange(grid, dtype=torch.float64) / grid * side
    by_row = (line[:, None] * frequencies).unsqueeze(1).expand(grid, grid, -1)
    by_column = (line[:, None] * frequencies).unsqueeze(0).expand(grid, grid, -1)
    theta = torch.cat((by_row, by_column), -1).flatten(0, 1)
    return theta.cos().to(dtype), theta.sin().to(dtype)


def random_tokens(seed, *, count=2, tokens=GRID**2 + 1, heads=3, width=WIDTH, dtype=torch.float32):
    return torch.randn(count, tokens, heads, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_known_answers(backend):
    """e0 + e32 at token (1, 2) of a grid as large as the pre-training's: angles 1 and 2."""
    tokens = torch.zeros(1, 257, 1, 64)
    tokens[0, 1 + 16 + 2, 0, [0, 32]] = 1.0
    turned, _ = rotate(tokens, tokens, *tables(grid=16), backend=backend)
    expected = torch.zeros(64)
    expected[[0, 1, 32, 33]] = torch.tensor([0.54030231, 0.84147098, -0.41614684, 0.90929743])
    torch.testing.assert_close(turned[0, 19, 0], expected, rtol=0, atol=1e-6)


def test_tokens_at_the_same_place_of_a_finer_grid_turn_alike():
    """(2, 4) of 16 x 16 is (3, 6) of 24 x 24."""
    (coarse, _), (fine, _) = tables(grid=16), tables(grid=24)
    assert torch.equal(coarse[2 * 16 + 4], fine[3 * 24 + 6])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_class_token_and_the_first_patch_stay_to_the_bit(backend, dtype):
    query, key = random_tokens(0, dtype=dtype), random_tokens(1, dtype=dtype)
    query[0, 0, 0, 0], query[0, 0, 0, 1] = -0.0, torch.inf
    for before, after in zip((query, key), rotate(query, key, *tables(), backend=backend), strict=True):
        assert torch.equal(before[:, 0].view(torch.uint8), after[:, 0].view(torch.uint8))
        assert torch.equal(before[:, 1], after[:, 1])
        assert not torch.equal(before[:, 2], after[:, 2])


def test_lengths_are_kept(backend):
    query, key = random_tokens(0), random_tokens(1)
    for before, after in zip((query, key), rotate(query, key, *tables(), backend=backend), strict=True):
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))


def test_products_depend_on_the_difference_of_places_alone(backend):
    """The same query and key everywhere: <R_p q, R_p' k> for all p, p'."""
    query, key = (random_tokens(seed, count=1, tokens=1, heads=1).expand(1, GRID**2 + 1, 1, WIDTH) for seed in (0, 1))
    turned_query, turned_key = rotate(query, key, *tables(), backend=backend)
    products = turned_query[0, 1:, 0] @ turned_key[0, 1:, 0].T
    places = torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID))
    found = {}
    for p, here in enumerate(places.tolist()):
        for q, there in enumerate(places.tolist()):
            found.setdefault((there[0] - here[0], there[1] - here[1]), []).append(float(products[p, q]))
    assert max(max(values) - min(values) for values in found.values()) < 1e-4
    means = [sum(values) / len(values) for values in found.values()]
    assert max(means) - min(means) > 1.0


@pytest.mark.parametrize("places", [None, torch.randperm(GRID**2).expand(2, -1)], ids=["all", "permuted"])
def test_the_gradient_is_the_rotation_by_the_negative_angle(backend, places):
    cosines, sines = tables()
    query, key = random_tokens(0).requires_grad_(), random_tokens(1).requires_grad_()
    incoming = [random_tokens(2), random_tokens(3)]
    turned = rotate(query, key, cosines, sines, places, backend=backend)
    gradients = torch.autograd.grad(turned, (query, key), incoming)
    back = rotate(*incoming, cosines, -sines, places, backend=backend)
    assert all(torch.equal(gradient, other) for gradient, other in zip(gradients, back, strict=True))
    for before, again in zip((query, key), rotate(*turned, cosines, -sines, places, backend=backend), strict=True):
        torch.testing.assert_close(again, before, rtol=1e-5, atol=1e-5)


def test_patch_dropout_is_a_choice_among_turned_tokens(backend):
    query, key = random_tokens(0), random_tokens(1)
    places = torch.stack([torch.randperm(GRID**2, generator=torch.Generator().manual_seed(s))[:17] for s in (0, 1)])
    rows = torch.arange(2).unsqueeze(1)
    chosen = torch.cat((torch.zeros(2, 1, dtype=torch.int64), places + 1), 1)
    everything = rotate(query, key, *tables(), backend=backend)
    kept = rotate(query[rows, chosen], key[rows, chosen], *tables(), places, backend=backend)
    assert all(torch.equal(some[rows, chosen], mine) for some, mine in zip(everything, kept, strict=True))


def test_a_query_of_class_tokens_comes_out_as_it_is(backend):
    query, key = random_tokens(0)[:, :1], random_tokens(1)
    same, turned = rotate(query, key, *tables(), backend=backend)
    assert torch.equal(same, query)
    assert torch.equal(turned, rotate(key, key, *tables(), backend=backend)[1])


def test_nothing_but_tables_and_places_is_kept(backend):
    query, key = random_tokens(0).requires_grad_(), random_tokens(1).requires_grad_()
    cosines, sines = tables()
    places = torch.arange(GRID**2).expand(2, -1).contiguous()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()), lambda _: None):
        rotate(query, key, cosines, sines, places, backend=backend)
    assert set(kept) == {tensor.data_ptr() for tensor in (cosines, sines, places)}


def test_it_may_be_differentiated_twice():
    query, key = (random_tokens(s, tokens=5, width=8, dtype=torch.float64).requires_grad_() for s in (0, 1))
    cosines, sines = tables(grid=2, width=8, dtype=torch.float64)
    torch.autograd.gradgradcheck(lambda q, k: rotate(q, k, cosines, sines), (query, key), fast_mode=True)


@pytest.mark.parametrize("place", [-1, GRID**2])
def test_a_place_outside_the_tables_is_refused(place):
    """By the compiled backend before anything is read; plain torch counts negative ones from the end as it does."""
    if cpu_backend.obstacle(torch.device("cpu"), torch.float32):
        pytest.skip("clipkit was installed without its compiled part")
    places = torch.zeros(2, GRID**2, dtype=torch.int64)
    places[1, 3] = place
    with pytest.raises(IndexError, match=rf"places: got {min(place, 0)} to {max(place, 0)}; want numbers from 0 to 35"):
        rotate(random_tokens(0), random_tokens(1), *tables(), places, backend="cpu")


def test_angles_of_the_published_model():
    """B/16: 14 x 14 patches stretched to 16; token (1, 2) has angles 8/7 and 16/7 in the first pairs of its halves."""
    cosines, sines = tables(grid=14, dtype=torch.float64)
    theta = torch.atan2(sines[16], cosines[16])
    torch.testing.assert_close(theta[[0, 1, 16, 17]], torch.tensor([8 / 7, 0.64267580, 16 / 7, 1.2853516]).double())
    assert math.isclose(float(theta[0]), 1.14285714, rel_tol=1e-8)
