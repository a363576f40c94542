# SPDX-License-Identifier: Apache-2.0
"""Batches depend on the global step alone: not on workers, ranks, caches, or where one started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from clipkit.data import Batch, GlobalOrder, ImageTransform, Loader, open_dataset
from clipkit.data.transform import normalise
from tests.data.samples import MEAN, STD, make_set, tokens

COUNT, BATCH, STEPS = 45, 10, 9  # four steps an epoch: nine steps go through three epochs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set"), COUNT, broken=[3, 17])


def loader(
    folder: Path, *, rank: int = 0, world_size: int = 1, workers: int = 0, batch: int = BATCH, **options: object
) -> Loader:
    dataset = open_dataset(folder)
    settings: dict = {
        "transform": ImageTransform(12, MEAN, STD, train=True, shift=2, flip=0.5),
        "caption_tags": (0, 2),
        "seed": 11,
        **options,
    }
    order = GlobalOrder(len(dataset), batch, 11)
    return Loader(dataset, order, rank=rank, world_size=world_size, tokenizer=tokens, workers=workers, **settings)


def take(loader: Loader, count: int = STEPS, start: int = 0) -> list[Batch]:
    iterator = loader.batches(start)
    taken = list(islice(iterator, count))
    close(iterator)
    return taken


def close(iterator: Iterator[Batch]) -> None:
    iterator.close()  # type: ignore[attr-defined]


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        a.step == b.step
        and a.captions == b.captions
        and torch.equal(a.ids, b.ids)
        and torch.equal(a.pixels, b.pixels)
        and torch.equal(a.tokens, b.tokens)
        for a, b in zip(left, right, strict=True)
    )


def test_batches_have_their_shapes(folder: Path) -> None:
    for step, batch in enumerate(take(loader(folder))):
        assert batch.step == step
        assert batch.pixels.dtype == torch.uint8
        assert batch.pixels.shape == (len(batch), 3, 12, 12)
        assert batch.tokens.shape == (len(batch), 24)
        assert batch.ids.dtype == batch.tokens.dtype == torch.int64
        assert len(batch.captions) == len(batch.ids) == len(batch) == BATCH - len(batch.skipped)
        for index, caption in zip(batch.ids.tolist(), batch.captions, strict=True):
            first, *tags = caption.split(", ")
            assert first == f"caption {index}"
            assert set(tags) <= {f"tag{index}{letter}" for letter in "abc"}


def test_moving_a_batch_normalises_it_once(folder: Path) -> None:
    batch = take(loader(folder), 1)[0]
    moved = batch.to("cpu")
    assert moved.pixels.dtype == torch.float32
    assert torch.equal(moved.pixels, normalise(batch.pixels, MEAN, STD))
    assert torch.equal(moved.to("cpu").pixels, moved.pixels)


@pytest.mark.parametrize("workers, start_method", [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_workers_change_nothing(folder: Path, workers: int, start_method: str) -> None:
    wanted = loader(folder)
    one = take(wanted)
    other = loader(folder, workers=workers, start_method=start_method)
    assert same(take(other), one)
    assert other.skipped == wanted.skipped == {"undecodable picture": 2}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 4, 6])
def test_any_step_can_be_the_first(folder: Path, workers: int, start: int) -> None:
    assert same(take(loader(folder, workers=workers), STEPS - start, start), take(loader(folder))[start:])


@pytest.mark.parametrize("world_size", [2, 3, 4, 10])
def test_ranks_share_the_global_batch_in_order(folder: Path, world_size: int) -> None:
    ranks = [take(loader(folder, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, whole in enumerate(take(loader(folder))):
        parts = [batches[step] for batches in ranks]
        assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
        assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
        sizes = [len(part) + len(part.skipped) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_a_world_larger_than_the_batch_has_empty_batches(folder: Path) -> None:
    sizes = [len(take(loader(folder, rank=rank, world_size=4, batch=3), 1)[0]) for rank in range(4)]
    assert sum(sizes) == 3
    assert 0 in sizes


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_changes_nothing(folder: Path, workers: int) -> None:
    assert same(take(loader(folder, workers=workers, cache_mb=0)), take(loader(folder, workers=workers, cache_mb=64)))


def test_cached_pictures_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    square = ImageTransform.square

    def counting(self: ImageTransform, content: bytes, **keys: int) -> np.ndarray:
        decoded.append(keys["index"])
        return square(self, content, **keys)

    monkeypatch.setattr(ImageTransform, "square", counting)
    take(loader(folder), 20)
    good = [index for index in decoded if index not in (3, 17)]
    assert len(good) == len(set(good))


def test_random_crops_are_never_cached(folder: Path) -> None:
    crops = ImageTransform(12, MEAN, STD, train=True, crop_scale=(0.3, 0.9))
    batches = take(loader(folder, transform=crops, cache_mb=64), 8)
    by_epoch = [
        {index: pixels for batch in epoch for index, pixels in zip(batch.ids.tolist(), batch.pixels, strict=True)}
        for epoch in (batches[:4], batches[4:])
    ]
    both = by_epoch[0].keys() & by_epoch[1].keys()
    assert sum(torch.equal(by_epoch[0][index], by_epoch[1][index]) for index in both) < len(both) / 4


def test_broken_samples_are_counted_named_once_and_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = loader(folder)
    batches = take(found, 12)
    assert found.skipped == {"undecodable picture": 2}
    assert not {3, 17} & {index for batch in batches for index in batch.ids.tolist()}
    named = [message for message in caplog.messages if message.startswith("skipping sample")]
    assert len(named) == 2
    assert any("00000.tar: s0003" in message for message in named)


def test_many_broken_samples_do_not_flood_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.data.loader.MAX_NAMED", 5)
    found = loader(make_set(tmp_path, 20, broken=range(20)))
    batches = take(found, 3)
    assert [len(batch) for batch in batches] == [0, 0, 0]
    assert batches[0].tokens.shape == (0, 24)
    assert batches[0].to("cpu").pixels.shape == (0, 3, 12, 12)
    assert found.skipped == {"undecodable picture": 20}
    assert len(caplog.messages) == 6


def test_an_epoch_repeats_nothing(folder: Path) -> None:
    for epoch in (0, 1):
        ids = torch.cat([batch.ids for batch in take(loader(folder), 4, 4 * epoch)]).tolist()
        assert len(ids) == len(set(ids))


def test_closing_the_iterator_ends_the_workers(folder: Path) -> None:
    iterator = loader(folder, workers=2).batches()
    next(iterator)
    children = multiprocessing.active_children()
    assert len(children) >= 2
    close(iterator)
    assert not [child for child in multiprocessing.active_children() if child in children]


def test_a_killed_worker_is_an_error_not_a_hang(folder: Path) -> None:
    iterator = loader(folder, workers=1).batches()
    next(iterator)
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="worker"):
        list(islice(iterator, 20))
    assert time.monotonic() - started < 30
    close(iterator)


def test_impossible_arguments_are_refused(folder: Path) -> None:
    for name, options in (
        ("rank", {"rank": 2, "world_size": 2}),
        ("workers", {"workers": -1}),
        ("caption_tags", {"caption_tags": (3, 1)}),
    ):
        with pytest.raises(ValueError, match=name):
            loader(folder, **options)
    with pytest.raises(ValueError, match="start_step"):
        next(loader(folder).batches(-1))
    dataset = open_dataset(folder)
    with pytest.raises(ValueError, match="order"):
        Loader(
            dataset,
            GlobalOrder(len(dataset) + 1, 5, 0),
            rank=0,
            world_size=1,
            transform=ImageTransform(12, MEAN, STD, train=False),
            tokenizer=tokens,
            seed=0,
        )
