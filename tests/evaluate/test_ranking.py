# SPDX-License-Identifier: Apache-2.0
"""Retrieval counts: known answers, ties, NaN, chunk invariance; nearest neighbours; chance."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from clipkit.evaluate import chance_level, nearest, retrieval, zero_shot
from clipkit.evaluate.ranking import query_ranks


def features_with_scores(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Features whose score matrix is exactly `scores`: rows against the unit vectors."""
    return scores, torch.eye(scores.shape[1])


def random_features(rows: int, columns: int, dim: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    return tuple(  # type: ignore[return-value]
        torch.nn.functional.normalize(torch.randn(n, dim, generator=generator), dim=1) for n in (rows, columns)
    )


def test_known_answer_with_one_right_caption_each() -> None:
    images, texts = features_with_scores(
        torch.tensor([[0.9, 0.1, 0.2, 0.3], [0.8, 0.5, 0.1, 0.6], [0.1, 0.2, 0.3, 0.4]])  # ranks 0, 2, 1
    )
    found = retrieval(images, texts, torch.tensor([0, 1, 2]), ks=(1, 2, 3))
    assert [found[f"image_to_text/R@{k}"] for k in (1, 2, 3)] == [1 / 3, 2 / 3, 1.0]
    # Down the columns: captions 0, 1 and 2 have scores .9/.8/.1, .1/.5/.2, .2/.1/.3; caption 3 asks nothing.
    assert found["text_to_image/R@1"] == 1.0
    assert (found["image_to_text/queries"], found["image_to_text/candidates"]) == (3, 4)
    assert (found["text_to_image/queries"], found["text_to_image/candidates"]) == (3, 3)
    assert found["image_to_text/chance_R@1"] == pytest.approx(1 / 4)
    assert found["text_to_image/chance_R@2"] == pytest.approx(2 / 3)


def test_several_positives_count_by_their_best_and_do_not_stand_in_each_others_way() -> None:
    images, texts = features_with_scores(
        torch.tensor(
            [
                [0.5, 0.6, 0.9, 0.1],  # right: 0, 1 -> only caption 2 is ahead of the best (0.6): rank 1
                [0.9, 0.8, 0.7, 0.6],  # right: 0, 1, 2 -> rank 0
                [0.1, 0.2, 0.3, 0.4],  # right: 0, 1 -> captions 2, 3 ahead: rank 2
            ]
        )
    )
    positives = [[0, 1], [2, 0, 1], [1, 0, 1]]  # order and repetition mean nothing
    found = retrieval(images, texts, positives, ks=(1, 2, 3))
    assert [found[f"image_to_text/R@{k}"] for k in (1, 2, 3)] == [1 / 3, 2 / 3, 1.0]
    # Captions 0 and 1 have all three pictures right; caption 2 has picture 1 (0.7), picture 0 (0.9) is ahead.
    assert [found[f"text_to_image/R@{k}"] for k in (1, 2)] == [2 / 3, 1.0]
    expected = (2 * chance_level(4, 2, 1) + chance_level(4, 3, 1)) / 3
    assert found["image_to_text/chance_R@1"] == pytest.approx(expected)


def test_ties_count_against_the_model() -> None:
    collapsed = torch.ones(5, 3) / math.sqrt(3)
    found = retrieval(collapsed, collapsed, torch.arange(5), ks=(1, 4, 5))
    assert (found["image_to_text/R@1"], found["image_to_text/R@4"], found["image_to_text/R@5"]) == (0.0, 0.0, 1.0)
    assert (found["text_to_image/R@1"], found["text_to_image/R@4"]) == (0.0, 0.0)


def test_duplicated_candidates_tie_wherever_the_chunks_fall() -> None:
    images, texts = random_features(40, 1)
    texts = torch.cat([texts.expand(30, -1), random_features(40, 20)[1]])
    for chunk in (1, 3, 7, 16, 1000):
        ranks = query_ranks(images, texts, torch.tensor([[row, row % 30] for row in range(40)]), chunk=chunk)
        assert int(ranks.min()) >= 29


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_features_that_diverged_never_look_good(poison: float) -> None:
    images = torch.full((6, 4), poison)
    found = retrieval(images, images, torch.arange(6), ks=(1, 5))
    assert found["image_to_text/R@1"] == found["image_to_text/R@5"] == found["text_to_image/R@5"] == 0.0


def test_a_nan_candidate_stands_before_every_answer() -> None:
    images, texts = torch.eye(3), torch.eye(3)
    texts[2] = math.nan
    assert query_ranks(images, texts, torch.tensor([[0, 0], [1, 1], [2, 2]])).tolist() == [1, 1, 3 - 1]


@pytest.mark.parametrize("rows, columns", [(1, 1), (17, 5), (64, 65), (130, 33)])
def test_result_does_not_depend_on_the_chunk(rows: int, columns: int) -> None:
    images, texts = random_features(rows, columns)
    positives = [[(row * 7) % columns, (row * 3) % columns] for row in range(rows)]
    whole = retrieval(images, texts, positives, chunk=10_000)
    for chunk in (1, 2, 16, 63):
        assert retrieval(images, texts, positives, chunk=chunk) == whole


def test_ranks_equal_a_naive_full_matrix() -> None:
    images, texts = random_features(50, 40)
    pairs = torch.tensor(sorted({(row, (row * step) % 40) for row in range(50) for step in (1, 3)}))
    scores = (images.double() @ texts.double().T).float()
    for row, rank in enumerate(query_ranks(images, texts, pairs, chunk=7).tolist()):
        right = {int(column) for query, column in pairs if int(query) == row}
        best = max(float(scores[row, column]) for column in right)
        assert rank == sum(float(scores[row, column]) >= best for column in range(40) if column not in right)


def test_no_block_larger_than_a_chunk_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipkit.evaluate import ranking

    seen: list[int] = []
    plain = ranking._scores

    def recording(*arguments: object) -> Tensor:
        block = plain(*arguments)  # type: ignore[arg-type]
        seen.append(block.numel())
        return block

    monkeypatch.setattr(ranking, "_scores", recording)
    images, texts = random_features(100, 90)
    retrieval(images, texts, [[0]] * 100, chunk=8)
    nearest(images, texts, 5, chunk=8)
    assert seen
    assert max(seen) <= 64


def test_pictures_and_captions_without_an_answer_ask_nothing() -> None:
    images, texts = torch.eye(3), torch.eye(3)
    found = retrieval(images, texts, [[0], [], [2]])
    assert (found["image_to_text/queries"], found["image_to_text/candidates"]) == (2, 3)
    assert (found["text_to_image/queries"], found["text_to_image/R@1"]) == (2, 1.0)
    empty = retrieval(images[:0], texts, [])
    assert math.isnan(empty["image_to_text/R@1"])
    assert empty["text_to_image/candidates"] == 0


def test_nearest_equals_a_stable_full_sort_for_every_chunk() -> None:
    images, texts = random_features(23, 31)
    texts[10] = texts[3]
    scores = (images.double() @ texts.double().T).float()
    values, order = scores.sort(dim=1, descending=True, stable=True)
    for chunk, k in itertools.product((1, 4, 100), (1, 5, 31, 50)):
        found, indexes = nearest(images, texts, k, chunk=chunk)
        assert torch.equal(indexes, order[:, :k])
        assert torch.equal(found, values[:, :k])
    assert nearest(images[:0], texts, 5)[1].shape == (0, 5)


def test_chance_level_against_enumeration() -> None:
    for candidates, positives, k in [(5, 1, 1), (5, 2, 2), (6, 3, 4), (4, 4, 1), (3, 1, 10)]:
        drawn = list(itertools.combinations(range(candidates), min(k, candidates)))
        expected = sum(min(hand) < positives for hand in drawn) / len(drawn)
        assert chance_level(candidates, positives, k) == pytest.approx(expected)


def test_zero_shot_known_answer() -> None:
    classifier = torch.eye(4)
    images = torch.tensor([[0.9, 0.1, 0, 0], [0.6, 0.5, 0.1, 0], [0.4, 0.3, 0.2, 0.1]])
    found = zero_shot(images, torch.tensor([0, 1, 3]), classifier, ks=(1, 2))
    assert (found["top@1"], found["top@2"], found["chance_top@1"]) == (1 / 3, 2 / 3, 0.25)
    assert (found["queries"], found["candidates"]) == (3, 4)


@pytest.mark.parametrize(
    "positives, ks, wrong",
    [
        ([[0]], (1,), "positives"),
        ([[0], [9]], (1,), "positives"),
        ([[0], [-1]], (1,), "positives"),
        (torch.tensor([0.0, 1.0]), (1,), "positives"),
        ([[0], [1]], (), "k"),
        ([[0], [1]], (0,), "k"),
    ],
)
def test_bad_input_is_named(positives: object, ks: tuple[int, ...], wrong: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{wrong}: got"):
        retrieval(torch.eye(2), torch.eye(2), positives, ks=ks)  # type: ignore[arg-type]


def test_features_of_different_width_are_named() -> None:
    with pytest.raises(ValueError, match="features: got shapes"):
        retrieval(torch.eye(2), torch.eye(3), [[0], [1]])
