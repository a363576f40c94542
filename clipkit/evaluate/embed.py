# SPDX-License-Identifier: Apache-2.0
"""Features of pictures and captions, in fixed batches dealt to ranks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.errors import value_error
from clipkit.evaluate.sharding import Shards

if TYPE_CHECKING:
    from clipkit.data import Dataset, ImageTransform, Record

logger = logging.getLogger(__name__)

# A run evaluates the same sets again and again; each broken sample is worth one line.
_NAMED: set[str] = set()


@dataclass
class ImageEmbeddings:
    """This rank's pictures of a data set: row i of every list and of `features` is one picture.

    `skipped` counts this rank's broken samples by reason; they have no row.
    """

    features: Tensor
    ids: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.ids)


def embed_images(
    model: Any,
    dataset: Dataset,
    *,
    transform: ImageTransform | None = None,
    batch_size: int = 256,
    workers: int = 2,
    group: dist.ProcessGroup | None = None,
) -> ImageEmbeddings:
    """L2-normalised float32 features of the data set's pictures, on the model's device.

    Args:
        model: a clipkit model; put in eval mode for the while.
        dataset: what `clipkit.data.open_dataset` returns.
        transform: how a picture becomes square pixels; None is the model's own evaluation transform.
        batch_size: pictures per forward, and the unit that is dealt to ranks.
        workers: decoding threads; the result does not depend on it.
        group: the ranks that share the work; each gets its own rows. None: this process does it all.
    """
    _check_batch_size(batch_size)
    shards = Shards(group)
    transform = transform or evaluation_transform(model)
    device, dtype = _placement(model)
    found = ImageEmbeddings(features=torch.empty(0))
    if shards.rank == 0:
        found.skipped.update(dataset.problems.counts)  # what the index already left out, once for all ranks
    features = []
    with _inference(model), ThreadPoolExecutor(max(workers, 1)) as pool:
        for indexes in shards.batches(len(dataset), batch_size):
            records = [record for index in indexes if (record := _read(dataset, index, found.skipped)) is not None]
            squares = list(pool.map(partial(_square, transform), records))
            usable = []
            for record, square in zip(records, squares, strict=True):
                if isinstance(square, str):
                    _skip(found.skipped, square, f"{dataset.name}: {record.key}")
                else:
                    usable.append(square)
                    found.ids.append(record.id)
                    found.keys.append(record.key)
                    found.captions.append(record.caption)
                    found.metadata.append(record.metadata)
            pixels = _normalised(usable, transform, device).to(dtype)
            features.append(model.encode_image(pixels, normalize=True).float())
    found.features = torch.cat(features) if features else _no_rows(model, device)
    return found


def embed_texts(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    batch_size: int = 256,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """L2-normalised float32 features [len(texts), d]: all rows on every rank's model device, each computed by one
    rank."""
    _check_batch_size(batch_size)
    shards = Shards(group)
    device, _ = _placement(model)
    context_length = int(model.config.text.context_length)
    batches = shards.batches(len(texts), batch_size)
    features = []
    with _inference(model):
        for batch in batches:
            own = [texts[index] for index in batch]
            tokens = tokenizer(own, context_length) if own else torch.empty(0, context_length, dtype=torch.int64)
            features.append(model.encode_text(tokens.to(device), normalize=True).float())
    if not features:
        return _no_rows(model, device)
    rows = shards.gather_rows(torch.cat(features))
    own_indexes = [index for batch in batches for index in batch]
    order = shards.gather_rows(torch.tensor(own_indexes, dtype=torch.int64, device=device))
    ordered = torch.empty_like(rows)
    ordered[order] = rows
    return ordered


def evaluation_transform(model: Any) -> ImageTransform:
    """The deterministic transform that the model's configuration asks for."""
    from clipkit.data import ImageTransform

    vision = model.config.vision
    return ImageTransform(vision.image_size, vision.mean, vision.std, train=False)


def _read(dataset: Dataset, index: int, skipped: Counter[str]) -> Record | None:
    """One record. Reading is this thread's: a data set serves one thread, only decoding is shared out."""
    from clipkit.data import BrokenSample

    try:
        return dataset.read(index)
    except BrokenSample as broken:
        _skip(skipped, broken.reason, f"{dataset.name}: {broken.shard} {broken.key}")
        return None


def _square(transform: ImageTransform, record: Record) -> Any:
    """uint8 pixels [H, W, 3], or the reason why there are none."""
    from clipkit.data import BrokenSample

    try:
        return transform.square(record.image_bytes, seed=0, epoch=0, index=record.id)
    except BrokenSample as broken:
        return broken.reason


def _skip(skipped: Counter[str], reason: str, where: str) -> None:
    skipped[reason] += 1
    if where not in _NAMED:
        _NAMED.add(where)
        logger.warning("evaluation skips %s: %s", where, reason)


def _normalised(squares: Sequence[Any], transform: ImageTransform, device: torch.device) -> Tensor:
    """[n, 3, H, W] float32 on the device, by the same arithmetic as a training batch."""
    from clipkit.data.transform import normalise

    shape = (len(squares), transform.size, transform.size, 3)
    pixels = torch.from_numpy(np.stack(squares)) if squares else torch.empty(shape, dtype=torch.uint8)
    return normalise(pixels.permute(0, 3, 1, 2).to(device), transform.mean, transform.std)


@contextmanager
def _inference(model: Any) -> Iterator[None]:
    """Eval mode without gradients; the mode that the model was in comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _placement(model: Any) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the weights; the temperature, 0-D, may be wider than they are."""
    weight = next(parameter for parameter in model.parameters() if parameter.ndim)
    return weight.device, weight.dtype


def _no_rows(model: Any, device: torch.device) -> Tensor:
    return torch.empty(0, int(model.config.embed_dim), device=device)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise value_error("batch_size", got=batch_size, want="at least 1", fix="pass for example 256")
