# SPDX-License-Identifier: Apache-2.0
"""The index of one shard: where each sample's picture, caption and metadata lie, found in one pass over the headers.

It is kept in a sidecar (`.clipkit-index/NAME.npz` beside the shard; the user's cache folder where that cannot be
written), is believed only while the shard's size and time of change are those it was made from, and holds no pickles.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import stat
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.fetch import default_cache
from clipkit.data.packed import PackedStrings
from clipkit.data.records import Problems, printable
from clipkit.data.tarscan import Damage, scan_tar

VERSION = 2
SIDECAR_FOLDER = ".clipkit-index"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "ppm", "tif", "tiff")  # the first present is taken
_CAPTION, _METADATA = "txt", "json"
# What a missing, damaged or foreign sidecar raises.
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile)
# columns of `ShardIndex.spans`
IMAGE, CAPTION, METADATA = 0, 1, 2


@dataclass(frozen=True)
class ShardIndex:
    """`spans[i, part]` is (offset, size) of sample i's picture, caption or metadata; offset -1 where it has none."""

    spans: NDArray[np.int64]
    keys: PackedStrings
    problems: Problems

    def __len__(self) -> int:
        return len(self.spans)


def load_index(shard: Path) -> ShardIndex:
    """The shard's index from its sidecar, or built now and written there; OSError when the shard cannot be read."""
    stamp = _stamp(shard)
    sidecars = _sidecars(shard)
    for sidecar in sidecars:
        if (index := _read_sidecar(sidecar, stamp)) is not None:
            return index
    index = build_index(shard)
    for sidecar in sidecars:
        if _write_sidecar(sidecar, stamp, index):
            break
    return index


def load_summary(shard: Path) -> tuple[int, Problems]:
    """How many samples the shard has and what its index left out; as `load_index`, but reads next to nothing where
    there is a sidecar, so that a thousand shards open in a second."""
    stamp = _stamp(shard)
    for sidecar in _sidecars(shard):
        try:
            with np.load(sidecar, allow_pickle=False) as arrays:
                if tuple(arrays["stamp"].tolist()) == stamp:
                    return int(arrays["count"]), _unpack_problems(arrays["problems"])
        except _UNREADABLE:
            continue
    index = load_index(shard)
    return len(index), index.problems


def index_shards(shards: Sequence[Path], processes: int, progress: Callable[[int, int], None]) -> None:
    """Build the sidecars that are missing, in several processes; shards that cannot be read are passed over."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(_index_one, shards), start=1):
            progress(done, len(shards))


def _index_one(shard: Path) -> None:
    with suppress(OSError):
        load_summary(shard)


def build_index(shard: Path) -> ShardIndex:
    """Scan the shard's headers. A sample is a picture with a caption or metadata under one key; a key is a member's
    name up to the first dot of its last part. What does not add up to a sample is counted in `problems`."""
    problems = Problems()
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    for item in scan_tar(shard):
        if isinstance(item, Damage):
            problems.add(item.reason, f"{shard.name}: {printable(item.where)}")
            continue
        folder, slash, base = item.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not stem:
            continue  # a hidden file, such as the ._name that macOS adds
        parts = groups.setdefault(f"{folder}{slash}{stem}", {})
        parts.setdefault(extension.lower(), (item.offset, item.size))
    keys, spans = [], []
    for key, parts in groups.items():
        image = _picture(parts)
        caption, metadata = parts.get(_CAPTION, (-1, 0)), parts.get(_METADATA, (-1, 0))
        if image is None or (caption[0] < 0 and metadata[0] < 0):
            problems.add("missing caption" if image else "missing picture", f"{shard.name}: {printable(key)}")
            continue
        keys.append(key)
        spans.append((image, caption, metadata))
    return ShardIndex(np.array(spans, dtype=np.int64).reshape(-1, 3, 2), PackedStrings.pack(keys), problems)


def _picture(parts: dict[str, tuple[int, int]]) -> tuple[int, int] | None:
    """The group's picture: a plain extension (`jpg`) first, else one behind another dot (`image.jpg`)."""
    for extension in IMAGE_EXTENSIONS:
        if extension in parts:
            return parts[extension]
    return next((span for name, span in parts.items() if name.rpartition(".")[2] in IMAGE_EXTENSIONS), None)


def _stamp(shard: Path) -> tuple[int, int, int]:
    status = shard.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")  # opening a pipe would wait forever
    return VERSION, status.st_size, status.st_mtime_ns


def _sidecars(shard: Path) -> tuple[Path, Path]:
    """Where the sidecar may be: beside the shard, and in the user's cache."""
    folder = hashlib.sha256(os.fsencode(shard.parent.absolute())).hexdigest()[:16]
    name = f"{shard.name}.npz"
    return shard.parent / SIDECAR_FOLDER / name, default_cache() / "index" / folder / name


def _read_sidecar(path: Path, stamp: tuple[int, int, int]) -> ShardIndex | None:
    """The index in `path`; None where there is none, it is stale, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if tuple(arrays["stamp"].tolist()) != stamp:
                return None
            spans, keys = arrays["spans"], PackedStrings(arrays["keys"], arrays["key_ends"])
            problems = _unpack_problems(arrays["problems"])
    except _UNREADABLE:
        return None
    if spans.dtype != np.int64 or spans.shape != (len(keys), 3, 2):
        return None
    return ShardIndex(spans, keys, problems)


def _unpack_problems(packed: NDArray[np.uint8]) -> Problems:
    counts, examples = json.loads(packed.tobytes())
    return Problems(Counter(counts), examples)


def _write_sidecar(path: Path, stamp: tuple[int, int, int], index: ShardIndex) -> bool:
    """Write by rename, so that a reader beside us sees the old file or the whole new one; False where it cannot be."""
    problems = json.dumps([index.problems.counts, index.problems.examples]).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix="writing-", delete=False) as stream:
            try:
                np.savez(
                    stream,
                    stamp=np.array(stamp, dtype=np.int64),
                    count=np.array(len(index), dtype=np.int64),
                    spans=index.spans,
                    keys=index.keys.blob,
                    key_ends=index.keys.ends,
                    problems=np.frombuffer(problems, dtype=np.uint8),
                )
                stream.close()
                os.replace(stream.name, path)
            except BaseException:
                os.unlink(stream.name)
                raise
    except OSError:
        return False
    return True
