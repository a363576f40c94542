# SPDX-License-Identifier: Apache-2.0
"""Small real sets for the tests of this room: pictures drawn with Pillow, in real shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from clipkit.data.shardwriter import Sample, write_shards

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def picture(number: int, *, size: tuple[int, int] = (16, 16), form: str = "PNG") -> bytes:
    """A coloured ellipse, different for every number."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist()))
    ImageDraw.Draw(image).ellipse([2, 2, size[0] - 3, size[1] - 4], fill=tuple(rng.integers(0, 256, 3).tolist()))
    stream = io.BytesIO()
    image.save(stream, form, quality=90)
    return stream.getvalue()


def make_set(folder: Path, count: int, *, shard_size: int = 7, broken: Iterable[int] = ()) -> Path:
    """Shards of `count` captioned pictures with three tags each; those in `broken` hold half a picture."""
    samples = []
    for number in range(count):
        content = picture(number)
        content = content[: len(content) // 2] if number in set(broken) else content
        metadata = {"tags": [f"tag{number}{letter}" for letter in "abc"], "number": number}
        samples.append(Sample(f"s{number:04d}", content, f"caption {number}", metadata))
    write_shards(folder, samples, shard_size=shard_size)
    return folder


def write_tar(
    path: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]], *, form: int = tarfile.PAX_FORMAT
) -> Path:
    """A tar of exactly these members; a TarInfo is taken as it is."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name) if isinstance(name, str) else name
            if header.isreg():
                header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def tokens(captions: list[str]) -> torch.Tensor:
    """A tokenizer double: the caption's characters, 24 of them."""
    rows = [[ord(letter) % 997 for letter in caption[:24].ljust(24)] for caption in captions]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 24)
