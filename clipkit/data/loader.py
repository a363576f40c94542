# SPDX-License-Identifier: Apache-2.0
"""Batches of one rank by global step: the same whatever the number of workers and wherever one starts."""

from __future__ import annotations

import itertools
import logging
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from clipkit.data.batch import Batch, Skipped
from clipkit.data.captions import with_tags
from clipkit.data.order import GlobalOrder, Ids
from clipkit.data.pictures import Pixels
from clipkit.data.records import BrokenSample, Dataset, Record
from clipkit.data.transform import ImageTransform
from clipkit.errors import value_error

_log = logging.getLogger(__name__)

MAX_NAMED = 100
_SHARED_MEMORY = "/dev/shm"

Words = tuple[str, Sequence[str]]  # a caption and the sample's tags
_Rows = tuple[Ids, Pixels, list[Words], list[Skipped]]


class Loader:
    """This rank's rows of every global batch of `order`.

    `transform` makes pixels, `tokenizer(list of captions) -> int64 [n, context]` tokens; `caption_tags=(low, high)`
    appends that many of a sample's tags to its caption. Everything random is keyed by (seed, epoch, id). `workers`
    processes prepare steps ahead; 0 prepares each in this process. Sets whose decoded pictures fit in `cache_mb` are
    decoded once.

    `skipped` counts the distinct broken samples met so far by reason; each is named once in the log.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: GlobalOrder,
        *,
        rank: int,
        world_size: int,
        transform: ImageTransform,
        tokenizer: Callable[[list[str]], Tensor],
        workers: int = 0,
        caption_tags: tuple[int, int] = (0, 0),
        seed: int,
        cache_mb: int = 512,
        start_method: str | None = None,
        pin_memory: bool = False,
    ) -> None:
        _check(dataset, order, rank, world_size, workers, caption_tags)
        self.skipped: Counter[str] = Counter()
        self._skipped_ids: set[int] = set()
        self._workers, self._start_method, self._pin_memory = workers, start_method, pin_memory
        rows = slice(order.global_batch * rank // world_size, order.global_batch * (rank + 1) // world_size)
        cache = _Cache.fitting(dataset, transform, cache_mb, shared=workers > 0)
        self._steps = _Steps(dataset, order, rows, transform, tokenizer, caption_tags, seed, cache)

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches of global steps start_step, start_step + 1, ... without end; closing the iterator ends the
        workers."""
        if start_step < 0:
            raise value_error("start_step", got=start_step, want="0 or more", fix="pass the number of steps done")
        for batch in self._prepared(start_step):
            self._note(batch.skipped)
            yield batch

    def _prepared(self, start_step: int) -> Iterator[Batch]:
        if self._workers == 0:
            for step in itertools.count(start_step):
                batch = self._steps[step]
                yield batch.pin_memory() if self._pin_memory else batch
        loader: DataLoader[Batch] = DataLoader(
            self._steps,
            batch_size=None,
            sampler=_StepsFrom(start_step),
            num_workers=self._workers,
            multiprocessing_context=self._start_method,
            pin_memory=self._pin_memory,
            worker_init_fn=_start_worker,
        )
        try:
            yield from loader
        except (EOFError, ConnectionError) as error:  # what reading from a dead process raises, at times
            raise RuntimeError("a data worker process died; out of memory? Try fewer workers") from error

    def _note(self, skipped: Sequence[Skipped]) -> None:
        for sample in skipped:
            if sample.index in self._skipped_ids:
                continue
            self._skipped_ids.add(sample.index)
            self.skipped[sample.reason] += 1
            if len(self._skipped_ids) <= MAX_NAMED:
                _log.warning("skipping sample %d (%s): %s", sample.index, sample.where, sample.reason)
            elif len(self._skipped_ids) == MAX_NAMED + 1:
                _log.warning("more than %d broken samples: the others are counted, not named", MAX_NAMED)


class _StepsFrom:
    """The endless list of steps to prepare. DataLoader only iterates over it."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._start)


class _Steps(TorchDataset[Batch]):
    """Step number -> this rank's batch, a pure function; what a worker process gets a copy of."""

    def __init__(
        self,
        dataset: Dataset,
        order: GlobalOrder,
        rows: slice,
        transform: ImageTransform,
        tokenizer: Callable[[list[str]], Tensor],
        caption_tags: tuple[int, int],
        seed: int,
        cache: _Cache | None,
    ) -> None:
        self._dataset, self._order, self._rows = dataset, order, rows
        self._transform, self._tokenizer, self._cache = transform, tokenizer, cache
        self._caption_tags, self._seed = caption_tags, seed

    def __getitem__(self, step: int) -> Batch:
        epoch, step_in_epoch = divmod(step, self._order.steps_per_epoch)
        wanted = self._order.ids(epoch, step_in_epoch)[self._rows]
        read = self._read_through_cache if self._cache is not None else self._read
        ids, square, words, skipped = read(wanted, epoch)
        varied = self._transform.vary(square, seed=self._seed, epoch=epoch, ids=ids)
        captions, tags = [caption for caption, _ in words], [tags for _, tags in words]
        captions = with_tags(captions, tags, self._caption_tags, seed=self._seed, epoch=epoch, ids=ids)
        return Batch(
            ids=torch.from_numpy(ids),
            pixels=torch.from_numpy(varied).permute(0, 3, 1, 2).contiguous(),
            tokens=self._tokens(captions),
            captions=captions,
            step=step,
            mean=tuple(self._transform.mean),
            std=tuple(self._transform.std),
            skipped=skipped,
        )

    def _read(self, wanted: Ids, epoch: int) -> _Rows:
        """Read and decode; what is broken is left out of ids, pixels and words, and told."""
        ids, pictures, words, skipped = [], [], [], []
        for index in wanted.tolist():
            try:
                record = self._dataset.read(index)
                pictures.append(self._square(record, epoch))
            except BrokenSample as broken:
                skipped.append(Skipped(index, broken.reason, broken.where))
                continue
            ids.append(index)
            words.append((record.caption, record.tags))
        size = self._transform.size
        square = np.stack(pictures) if pictures else np.empty((0, size, size, 3), dtype=np.uint8)
        return np.array(ids, dtype=np.int64), square, words, skipped

    def _read_through_cache(self, wanted: Ids, epoch: int) -> _Rows:
        assert self._cache is not None
        new = np.array([index for index in wanted.tolist() if index not in self._cache.words], dtype=np.int64)
        ids, square, words, skipped = self._read(new, epoch)
        self._cache.put(ids, square, words)
        if skipped:
            wanted = wanted[~np.isin(wanted, [sample.index for sample in skipped])]
        return wanted, *self._cache.get(wanted), skipped

    def _square(self, record: Record, epoch: int) -> Pixels:
        try:
            return self._transform.square(record.image_bytes, seed=self._seed, epoch=epoch, index=record.id)
        except BrokenSample as broken:
            raise BrokenSample(broken.reason, record.shard, record.key) from broken

    def _tokens(self, captions: list[str]) -> Tensor:
        # the tokenizer says how long its context is, also where every sample of the slice was broken
        return self._tokenizer(captions) if captions else self._tokenizer([""])[:0]


class _Cache:
    """Decoded pictures of a whole set in one array, their captions and tags beside it.

    Worker processes share the array but not the words: each decodes for itself what it has not met, and what it
    writes is what another wrote before. So nobody waits and nobody reads half a picture.
    """

    def __init__(self, count: int, size: int, *, shared: bool) -> None:
        pixels = torch.empty(count, size, size, 3, dtype=torch.uint8)
        self._pixels = pixels.share_memory_() if shared else pixels
        self.words: dict[int, Words] = {}

    @classmethod
    def fitting(cls, dataset: Dataset, transform: ImageTransform, cache_mb: int, *, shared: bool) -> _Cache | None:
        """A cache for all of `dataset`, or None where it is not worth it or there is no room."""
        needed = len(dataset) * transform.size**2 * 3
        if not transform.is_cacheable or needed > cache_mb << 20:
            return None
        if shared and needed > _free_shared_memory() // 2:  # writing beyond it would kill the process
            return None
        return cls(len(dataset), transform.size, shared=shared)

    def get(self, ids: Ids) -> tuple[Pixels, list[Words]]:
        """Pixels [n, size, size, 3] and words of samples that were put here by this process."""
        return self._pixels[torch.from_numpy(ids)].numpy(), [self.words[index] for index in ids.tolist()]

    def put(self, ids: Ids, pixels: Pixels, words: list[Words]) -> None:
        """Keep samples."""
        self._pixels[torch.from_numpy(ids)] = torch.from_numpy(pixels)
        self.words.update(zip(ids.tolist(), words, strict=True))


def _free_shared_memory() -> int:
    try:
        return shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        return 0


def _start_worker(_: Any) -> None:
    """Leave signals to the main process: it ends the workers, and a handler inherited by a fork is not theirs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check(
    dataset: Dataset, order: GlobalOrder, rank: int, world_size: int, workers: int, caption_tags: tuple[int, int]
) -> None:
    if order.num_samples != len(dataset):
        raise value_error(
            "order",
            got=f"an order of {order.num_samples} samples",
            want=f"{len(dataset)}, the set's size",
            fix="make it GlobalOrder(len(dataset), ...)",
        )
    if not 0 <= rank < world_size:
        raise value_error("rank", got=rank, want=f"0 to {world_size - 1}", fix="pass this process's rank")
    if workers < 0:
        raise value_error("workers", got=workers, want="0 or more", fix="use 0 to load in this process")
    if not 0 <= caption_tags[0] <= caption_tags[1]:
        raise value_error("caption_tags", got=caption_tags, want="0 <= low <= high", fix="try (0, 4)")
