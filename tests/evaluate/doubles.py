# SPDX-License-Identifier: Apache-2.0
"""A real but tiny model and data set, and what a test needs to poison them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black", "grey", "pink", "brown")


def write_set(
    folder: Path, captions: list[str], *, broken: tuple[int, ...] = (), metadata: list[dict[str, Any]] | None = None
) -> Path:
    """Shards of up to 7 samples with these captions; the pictures of `broken` do not decode."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, start in enumerate(range(0, len(captions), 7)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(start, min(start + 7, len(captions))):
                content = _picture(number) if number not in broken else b"\x89PNG broken"
                fields = {"png": content, "txt": captions[number].encode()}
                if metadata is not None:
                    fields["json"] = json.dumps(metadata[number]).encode()
                for ending, data in fields.items():
                    member = tarfile.TarInfo(f"sample-{number:04d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def tiny_model() -> Any:
    """A small CLIP with fixed random weights."""
    import clipkit

    torch.manual_seed(0)
    return clipkit.create_model("vit-tiny-32px").eval()


def tokenizer_of(model: Any) -> Any:
    """The model's own tokenizer."""
    from clipkit.data import get_tokenizer

    return get_tokenizer(model.config)


def _picture(number: int) -> bytes:
    image = Image.new("RGB", (32, 32), "white")
    spot = Image.new("RGB", (8 + number % 20, 12), ((number * 67) % 256, (number * 131) % 256, (number * 29) % 256))
    image.paste(spot, (number % 9, (number * 3) % 17))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
