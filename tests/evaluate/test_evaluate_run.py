# SPDX-License-Identifier: Apache-2.0
"""Evaluation over real shards: broken samples, several captions, stopping, classes, equality on every world size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.data import open_dataset
from clipkit.evaluate import (
    embed,
    embed_images,
    embed_retrieval_set,
    embed_texts,
    evaluate_run,
    retrieval,
    text_classifier,
)
from clipkit.evaluate.sharding import Shards
from clipkit.train.config import EvalConfig, RetrievalSet, ZeroShotSet
from tests.evaluate.doubles import COLOURS, tiny_model, tokenizer_of, write_set
from tests.parallel.ranks import run_on_ranks

CAPTIONS = [f"a {COLOURS[number % 11]} bar number {number // 2}" for number in range(26)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = [{"class": COLOURS[number % 11]} for number in range(26)]
    folder = write_set(tmp_path_factory.mktemp("set") / "test", CAPTIONS, broken=(4, 17), metadata=metadata)
    (folder.parent / "captions.txt").write_text("\n".join([*CAPTIONS, "something else", ""]), encoding="utf-8")
    (folder.parent / "classes.txt").write_text("\n".join(COLOURS), encoding="utf-8")
    return folder


def config_for(folder: Path, batch_size: int = 4) -> EvalConfig:
    above = folder.parent
    return EvalConfig(
        batch_size=batch_size,
        retrieval=(
            RetrievalSet("file", str(folder), str(above / "captions.txt")),
            RetrievalSet("own", str(folder)),
        ),
        zero_shot=(ZeroShotSet("colours", str(folder), str(above / "classes.txt")),),
    )


def test_broken_samples_are_counted_named_once_and_skipped(
    model: Any, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(embed.logger, "warning", lambda text, *values: warnings.append(text % values))
    embed._NAMED.clear()
    found = embed_images(model, open_dataset(shards), batch_size=5)
    again = embed_images(model, open_dataset(shards), batch_size=5)
    assert len(found) == len(found.features) == 24
    assert found.skipped == again.skipped == {"undecodable picture": 2}
    assert {4, 17}.isdisjoint(found.ids)
    assert sum("sample-0004" in message for message in warnings) == 1
    assert torch.allclose(found.features.norm(dim=1), torch.ones(24), atol=1e-5)


def test_features_do_not_depend_on_decoding_threads_and_the_model_keeps_its_mode(model: Any, shards: Path) -> None:
    model.train()
    one = embed_images(model, open_dataset(shards), batch_size=8, workers=1)
    many = embed_images(model, open_dataset(shards), batch_size=8, workers=4)
    assert model.training
    model.eval()
    assert torch.equal(one.features, many.features)
    assert one.keys == many.keys


@pytest.fixture(scope="module")
def alone(model: Any, shards: Path) -> dict[str, float]:
    return evaluate_run(model, tokenizer_of(model), config_for(shards))


def test_candidates_come_from_the_file_or_from_the_set(alone: dict[str, float]) -> None:
    metrics = alone
    assert metrics["file/image_to_text/candidates"] == len(set(CAPTIONS)) + 1
    assert metrics["own/image_to_text/candidates"] == len({CAPTIONS[n] for n in range(26) if n not in (4, 17)})
    assert metrics["own/image_to_text/queries"] == 24
    assert metrics["file/skipped"] == 2
    assert metrics["colours/candidates"] == 11
    assert metrics["colours/queries"] == 24


def test_pictures_with_several_captions_have_them_all_right(model: Any, tmp_path: Path) -> None:
    several = [{"captions": ["one", "two"]}, {"captions": ["two", "three", "four"]}, {}]
    folder = write_set(tmp_path / "set", ["one", "two", "five"], metadata=several)
    embedded = embed_retrieval_set(model, tokenizer_of(model), RetrievalSet("several", str(folder)))
    assert embedded.captions == ["one", "two", "three", "four", "five"]
    assert embedded.positives == [[0, 1], [1, 2, 3], [4]]


def test_stop_is_asked_between_sets(model: Any, shards: Path) -> None:
    asked: list[bool] = []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) == 2

    metrics = evaluate_run(model, tokenizer_of(model), config_for(shards), should_stop=should_stop)
    assert {key.split("/")[0] for key in metrics} == {"file"}


def test_a_set_without_any_right_answer_is_an_error_and_a_few_are_counted(
    model: Any, shards: Path, tmp_path: Path
) -> None:
    few, none = tmp_path / "few.txt", tmp_path / "none.txt"
    few.write_text("\n".join(CAPTIONS[:6]), encoding="utf-8")
    none.write_text("not one of them\n", encoding="utf-8")
    tokenizer = tokenizer_of(model)
    found = evaluate_run(model, tokenizer, EvalConfig(retrieval=(RetrievalSet("few", str(shards), str(few)),)))
    assert found["few/unanswered"] == 24 - found["few/image_to_text/queries"] > 0
    with pytest.raises(ValueError, match="eval set 'none'"):
        evaluate_run(model, tokenizer, EvalConfig(retrieval=(RetrievalSet("none", str(shards), str(none)),)))


def test_classifier_is_the_normalised_mean_over_templates(model: Any) -> None:
    tokenizer = tokenizer_of(model)
    found = text_classifier(model, tokenizer, ["cat", "dog"], ["a {}", "the {}."])
    sentences = embed_texts(model, tokenizer, ["a cat", "the cat.", "a dog", "the dog."])
    expected = torch.nn.functional.normalize(torch.stack([sentences[:2].mean(0), sentences[2:].mean(0)]), dim=1)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="templates: got 'a cat'"):
        text_classifier(model, tokenizer, ["cat"], ["a cat"])


def test_classes_are_numbers_names_or_captions(model: Any, tmp_path: Path) -> None:
    metadata: list[dict[str, Any]] = [{"class": 1}, {"label": "red"}, {}, {"class": 99}, {"class": "unheard of"}]
    folder = write_set(tmp_path / "set", ["x", "x", "blue", "x", "x"], metadata=metadata)
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n", encoding="utf-8")
    entry = ZeroShotSet("few", str(folder), str(tmp_path / "classes.txt"))
    metrics = evaluate_run(model, tokenizer_of(model), EvalConfig(zero_shot=(entry,)))
    assert (metrics["few/queries"], metrics["few/candidates"], metrics["few/unanswered"]) == (3, 3, 2)


def test_missing_files_are_named(model: Any, shards: Path) -> None:
    entry = RetrievalSet("gone", str(shards), str(shards / "gone.txt"))
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        evaluate_run(model, tokenizer_of(model), EvalConfig(retrieval=(entry,)))


def _save_what_a_rank_finds(rank: int, folder: str, results: str) -> None:
    model = tiny_model()
    found = evaluate_run(model, tokenizer_of(model), config_for(Path(folder)))
    texts = embed_texts(model, tokenizer_of(model), CAPTIONS[:9], batch_size=4, group=dist.group.WORLD)
    images, candidates, positives = _points()
    part = slice(0, 2) if rank == 0 else slice(2, None)
    unequal = retrieval(images[part], candidates, positives[part], group=dist.group.WORLD)
    idle = evaluate_run(model, tokenizer_of(model), config_for(Path(folder), batch_size=64))  # rank 1 has nothing to do
    torch.save({"metrics": found, "texts": texts, "unequal": unequal, "idle": idle}, f"{results}/{rank}.pt")


def _points() -> tuple[Tensor, Tensor, list[list[int]]]:
    generator = torch.Generator().manual_seed(3)
    images, texts = torch.randn(21, 8, generator=generator), torch.randn(13, 8, generator=generator)
    return images, texts, [[row % 13, (row * 5) % 13] for row in range(21)]


def test_ranks_with_unequal_shards_give_the_numbers_of_one_process(
    model: Any, shards: Path, alone: dict[str, float], tmp_path: Path
) -> None:
    run_on_ranks(2, _save_what_a_rank_finds, str(shards), str(tmp_path))
    texts = embed_texts(model, tokenizer_of(model), CAPTIONS[:9], batch_size=4)
    whole = evaluate_run(model, tokenizer_of(model), config_for(shards, batch_size=64))
    images, candidates, positives = _points()
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert saved["metrics"] == alone
        assert saved["idle"] == whole
        assert torch.equal(saved["texts"], texts)
        assert saved["unequal"] == retrieval(images, candidates, positives)
    assert not any(math.isnan(value) for value in alone.values())


@pytest.mark.parametrize("total, batch_size, world", [(0, 4, 2), (1, 4, 3), (26, 4, 2), (26, 4, 3), (8, 4, 2)])
def test_batches_cover_everything_once_with_as_many_turns_on_every_rank(
    monkeypatch: pytest.MonkeyPatch, total: int, batch_size: int, world: int
) -> None:
    dealt = []
    for rank in range(world):
        monkeypatch.setattr(Shards, "rank", rank)
        monkeypatch.setattr(Shards, "world_size", world)
        dealt.append(Shards().batches(total, batch_size))
    assert len({len(batches) for batches in dealt}) == 1
    assert sorted(index for batches in dealt for batch in batches for index in batch) == list(range(total))
    assert all(batch.start % batch_size == 0 for batches in dealt for batch in batches if batch)
