# SPDX-License-Identifier: Apache-2.0
"""A dataset over webdataset-format tar shards: dense ids by prefix sums, reads by position."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.data.index import CAPTION, IMAGE, METADATA, ShardIndex, load_index, load_summary
from clipkit.data.records import BrokenSample, Problems, Record

MAX_PICTURE_BYTES = 256 << 20
MAX_TEXT_BYTES = 1 << 20
_CAPTION_FIELDS = ("caption", "text", "label")  # of a sample's json, where it has no .txt
_OPEN_FILES = 64
_HELD_INDEXES = 128


class ShardDataset:
    """Captioned pictures in `shards`, in the order given. Ids run through the first shard, then the second, ...

    A shard that cannot be read is left out and counted. Reads use pread, so a forked worker may share the open files;
    a spawned one opens its own. Threads may read at the same time.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        *,
        tags_key: str = "tags",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.name = str(shards[0].parent) if shards else "nothing"
        self.problems = Problems()
        self._shards = [Path(shard) for shard in shards]
        self._tags_key = tags_key
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._files: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.RLock()  # over both caches: a file must not be closed while another thread reads it
        counts = []
        for number in range(len(self._shards)):
            counts.append(self._count(number))
            if progress is not None:
                progress(number + 1, len(self._shards))
        self._ends = np.cumsum(counts, dtype=np.int64)
        self.fingerprint = _fingerprint(self._shards, counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, index: int) -> Record:
        """The sample with this id; IndexError outside 0 to len - 1, BrokenSample where it cannot be used."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample id {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[number - 1]) if number else 0)
        shard_index = self._index(number)
        key = shard_index.keys[row]
        image = self._bytes(number, shard_index, row, IMAGE, MAX_PICTURE_BYTES)
        metadata = self._metadata(number, shard_index, row)
        caption = self._caption(number, shard_index, row, metadata)
        tags = metadata.get(self._tags_key)
        tags = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
        return Record(index, key, image, caption, metadata, tags, self._shards[number].name)

    def close(self) -> None:
        """Close the shards that are open; a later read opens them again."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name != "_lock"}
        return {**kept, "_files": OrderedDict(), "_indexes": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def __del__(self) -> None:
        if "_lock" in self.__dict__:
            self.close()

    def _count(self, number: int) -> int:
        shard = self._shards[number]
        try:
            count, problems = load_summary(shard)
        except OSError as error:
            self.problems.add("unreadable shard", f"{shard.name}: {error.strerror or error}")
            return 0
        self.problems.merge(problems)
        return count

    def _index(self, number: int) -> ShardIndex:
        with self._lock:
            return self._held_index(number)

    def _held_index(self, number: int) -> ShardIndex:
        if number in self._indexes:
            self._indexes.move_to_end(number)
            return self._indexes[number]
        shard = self._shards[number]
        try:
            index = load_index(shard)
        except OSError as error:
            raise BrokenSample("unreadable shard", shard.name, "") from error
        if len(index) != int(self._ends[number]) - (int(self._ends[number - 1]) if number else 0):
            raise BrokenSample("shard changed since it was indexed", shard.name, "")
        self._indexes[number] = index
        if len(self._indexes) > _HELD_INDEXES:
            self._indexes.popitem(last=False)
        return index

    def _file(self, number: int) -> int:
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        self._files[number] = os.open(self._shards[number], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        if len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return self._files[number]

    def _bytes(self, number: int, index: ShardIndex, row: int, part: int, limit: int) -> bytes:
        offset, size = index.spans[row, part].tolist()
        shard = self._shards[number].name
        if size > limit:
            raise BrokenSample("too many bytes", shard, index.keys[row])
        try:
            with self._lock:
                content = os.pread(self._file(number), size, offset)
        except OSError as error:
            raise BrokenSample("unreadable shard", shard, index.keys[row]) from error
        if len(content) != size:
            raise BrokenSample("truncated tar", shard, index.keys[row])
        return content

    def _metadata(self, number: int, index: ShardIndex, row: int) -> dict[str, Any]:
        if index.spans[row, METADATA, 0] < 0:
            return {}
        try:
            content = json.loads(self._bytes(number, index, row, METADATA, MAX_TEXT_BYTES))
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            return content
        raise BrokenSample("damaged json", self._shards[number].name, index.keys[row])

    def _caption(self, number: int, index: ShardIndex, row: int, metadata: dict[str, Any]) -> str:
        caption: object
        if index.spans[row, CAPTION, 0] >= 0:
            caption = self._bytes(number, index, row, CAPTION, MAX_TEXT_BYTES).decode("utf-8", "replace")
        else:
            caption = next((metadata[name] for name in _CAPTION_FIELDS if name in metadata), None)
        if not isinstance(caption, str) or not caption.strip():
            raise BrokenSample("missing caption", self._shards[number].name, index.keys[row])
        return caption.strip()


def _fingerprint(shards: Sequence[Path], counts: Sequence[int]) -> str:
    digest = hashlib.sha256()
    for shard, count in zip(shards, counts, strict=True):
        size = shard.stat().st_size if shard.exists() else -1
        digest.update(f"{shard.name}\0{size}\0{count}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
