# SPDX-License-Identifier: Apache-2.0
"""Features of pictures and captions, in fixed batches dealt to ranks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.errors import value_error
from clipkit.evaluate.sharding import Shards

logger = logging.getLogger(__name__)


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
    dataset: Any,
    *,
    transform: Callable[[Any], Tensor] | None = None,
    batch_size: int = 256,
    workers: int = 2,
    group: dist.ProcessGroup | None = None,
) -> ImageEmbeddings:
    """L2-normalised float32 features of the data set's pictures, on the model's device.

    Args:
        model: a clipkit model; put in eval mode for the while.
        dataset: what `clipkit.data.open_dataset` returns.
        transform: PIL picture -> [3, H, W] normalised float tensor; None is the model's own evaluation transform.
        batch_size: pictures per forward, and the unit that is dealt to ranks.
        workers: decoding threads; the result does not depend on it.
        group: the ranks that share the work; each gets its own rows. None: this process does it all.
    """
    _check_batch_size(batch_size)
    read = _reader(dataset, transform or evaluation_transform(model))
    size = int(model.config.vision.image_size)
    device, dtype = _placement(model)
    found = ImageEmbeddings(features=torch.empty(0))
    features = []
    with _inference(model), ThreadPoolExecutor(max(workers, 1)) as pool:
        for indexes in Shards(group).batches(len(dataset), batch_size):
            samples = []
            for index, outcome in zip(indexes, pool.map(read, indexes), strict=True):
                if isinstance(outcome, tuple):
                    samples.append(outcome)
                else:
                    found.skipped[outcome.reason] += 1
                    logger.warning("evaluation skips sample %d: %s", index, outcome)
            pixels = torch.stack([pixels for _, pixels in samples]) if samples else torch.empty(0, 3, size, size)
            features.append(model.encode_image(pixels.to(device, dtype), normalize=True).float())
            for record, _ in samples:
                found.ids.append(int(record.id))
                found.keys.append(record.key)
                found.captions.append(record.caption)
                found.metadata.append(record.metadata)
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
    order = shards.gather_rows(torch.tensor([index for batch in batches for index in batch], device=device))
    ordered = torch.empty_like(rows)
    ordered[order] = rows
    return ordered


def evaluation_transform(model: Any) -> Callable[[Any], Tensor]:
    """The deterministic transform that the model's configuration asks for."""
    from clipkit.data import ImageTransform

    vision = model.config.vision
    return ImageTransform(vision.image_size, vision.mean, vision.std, train=False)


def _reader(dataset: Any, transform: Callable[[Any], Tensor]) -> Callable[[int], Any]:
    """A function of a sample's index: (record, pixels), or the BrokenSample that says why there are none."""
    from clipkit.data import BrokenSample, decode_image

    def read(index: int) -> Any:
        try:
            record = dataset.read(index)
            return record, transform(decode_image(record.image_bytes))
        except BrokenSample as broken:
            return broken

    return read


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
