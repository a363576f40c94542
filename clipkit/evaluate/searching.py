# SPDX-License-Identifier: Apache-2.0
"""Pictures of a data set with their features, kept on disk so that a second search embeds nothing but its query."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit.evaluate.embed import embed_images
from clipkit.evaluate.ranking import nearest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchIndex:
    """Features [n, d] of a data set's pictures; row i is sample `ids[i]`."""

    dataset: Any
    features: Tensor
    ids: list[int]
    keys: list[str]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Found:
    """One picture of a search's answer; `image_bytes` is the file as the data set holds it."""

    key: str
    caption: str
    score: float
    image_bytes: bytes


def open_index(folder: Path, name: str, dataset: Any, model: Any, *, step: int, batch_size: int = 256) -> SearchIndex:
    """The index of `dataset` under the model of checkpoint `step`: read from `folder`, else embedded and kept there.

    Files are named by set, step and the data set's fingerprint: another checkpoint or changed data means another file.
    Older files of the same set are removed.
    """
    prefix = f"{slug(name)}-step"
    path = folder / f"{prefix}-{step:08d}-{dataset.fingerprint[:16]}.npz"
    index = _read(path, dataset)
    if index is None:
        images = embed_images(model, dataset, batch_size=batch_size)
        index = SearchIndex(dataset, images.features.cpu(), images.ids, images.keys, images.captions)
        _write(path, index)
        for old in folder.glob(f"{prefix}-*.npz"):
            if old != path:
                old.unlink(missing_ok=True)
    return index


def search(indexes: list[SearchIndex], query: Tensor, top: int) -> list[Found]:
    """The `top` pictures nearest to one query's features [d], over all indexes; equal scores in the indexes' order."""
    candidates: list[tuple[float, SearchIndex, int]] = []
    for index in indexes:
        scores, rows = nearest(query.cpu()[None], index.features, top)
        pairs = zip(scores[0].tolist(), rows[0].tolist(), strict=True)
        candidates.extend((score, index, row) for score, row in pairs)
    best = sorted(candidates, key=lambda one: -one[0])[:top]
    return [
        Found(index.keys[row], index.captions[row], score, index.dataset.read(index.ids[row]).image_bytes)
        for score, index, row in best
    ]


def slug(text: str) -> str:
    """A file name for a text: letters and digits of any script, dashes between, at most 60."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:60].strip("-") or "query"


def _read(path: Path, dataset: Any) -> SearchIndex | None:
    """None where there is no file or no readable one: it can be made again."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            features, ids = torch.from_numpy(stored["features"]), stored["ids"].tolist()
            keys, captions = (json.loads(stored[name].tobytes()) for name in ("keys", "captions"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read (%s) and is made again", path, error)
        return None
    if not len(features) == len(ids) == len(keys) == len(captions):
        return None
    return SearchIndex(dataset, features, ids, keys, captions)


def _write(path: Path, index: SearchIndex) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.savez(
            stream,
            features=index.features.numpy(),
            ids=np.array(index.ids, dtype=np.int64),
            # As JSON bytes: an array of strings would be as wide as the longest caption, in every row.
            keys=np.frombuffer(json.dumps(index.keys).encode(), dtype=np.uint8),
            captions=np.frombuffer(json.dumps(index.captions).encode(), dtype=np.uint8),
        )
    partial.replace(path)
