# SPDX-License-Identifier: Apache-2.0
"""Write webdataset-format shards whose bytes depend on their content alone (no clock, no user, no order of arrival)."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One captioned picture on its way into a shard; `extension` names the picture's format (png, jpg, webp)."""

    key: str
    image: bytes
    caption: str
    metadata: dict[str, Any] = field(default_factory=dict)
    extension: str = "png"


def write_shards(folder: Path, samples: Iterable[Sample], *, shard_size: int = 2048) -> int:
    """Write `samples`, sorted by key, as folder/00000.tar, folder/00001.tar ...; return how many there were.

    Keys must be unique and hold no dot (a webdataset key ends at the first dot) and no slash: else ValueError.
    """
    ordered = sorted(samples, key=lambda sample: sample.key)
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(ordered), shard_size):
        path = folder / f"{start // shard_size:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            previous = ordered[start - 1].key if start else None
            for sample in ordered[start : start + shard_size]:
                if sample.key == previous or not sample.key or set("./") & set(sample.key):
                    raise ValueError(f"sample key {sample.key!r}: want a unique name without dots and slashes")
                previous = sample.key
                _add(tar, f"{sample.key}.{sample.extension}", sample.image)
                _add(tar, f"{sample.key}.txt", sample.caption.encode())
                text = json.dumps(sample.metadata, ensure_ascii=False, sort_keys=True)
                _add(tar, f"{sample.key}.json", text.encode())
    return len(ordered)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mode = 0o644
    tar.addfile(header, io.BytesIO(content))
