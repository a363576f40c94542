# SPDX-License-Identifier: Apache-2.0
"""The set "stamps": cut-out photos and clip art, each with an English sentence, from Tux Paint's stamp collection.

Debian's package tuxpaint-stamps-default has a text file beside most pictures; its first line is the caption, and the
folders that the picture lies in are its tags. A seventh of the captions are held out (split test): several pictures
of one caption, and the two formats of one drawing, are thereby on one side.
"""

from __future__ import annotations

import io
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from clipkit.data.archives import read_members
from clipkit.data.building import BuildOptions, BuildReport, Content, Source, build_set, held_out
from clipkit.data.fetch import fetch_debian
from clipkit.data.pictures import decode_image
from clipkit.data.raster import need_resvg, rasterise_all
from clipkit.data.records import BrokenSample
from clipkit.data.shardwriter import Sample

PACKAGE = "tuxpaint-stamps-default"
HELD_OUT_SHARE = 1 / 7
_ROOT = PurePosixPath("usr/share/tuxpaint/stamps")
_COPYRIGHT = f"usr/share/doc/{PACKAGE}/copyright"


def build(destination: Path, **settings: Any) -> BuildReport:
    """Fetch the package (161 MB) and build the set at `destination`; see the module for what is in it.

    `settings` are the fields of `BuildOptions`: image_size=32, seed=0, cache, offline_cache, force, progress.
    """
    options = BuildOptions(**settings)
    return build_set("stamps", destination, options, lambda: _make(options))


def _make(options: BuildOptions) -> Content:
    need_resvg()  # before anything is fetched
    package = fetch_debian(
        PACKAGE, cache=options.cache, offline_cache=options.offline_cache, announce=options.progress.say
    )
    options.progress.say(f"reading {package.name}")
    files = _read_package(package)
    pictures = draw(files, options)
    captions = {stem: caption for stem in pictures if (caption := first_line(files, stem))}
    names = sorted(set(captions.values()))
    unseen = held_out(names, HELD_OUT_SHARE, options.seed)
    version = package.name.removeprefix(f"{PACKAGE}_").rpartition("_")[0]
    return Content(
        splits=split_pictures(pictures, captions, unseen),
        captions=names,
        sources=[
            Source(
                package=f"Debian {PACKAGE}",
                version=version,
                title="Tux Paint stamps",
                author="Bill Kendrick and the Tux Paint contributors",
                spdx="GPL-2.0-only",
                url="licences/tuxpaint-stamps.txt",
            )
        ],
        licence_texts={"tuxpaint-stamps": files[PurePosixPath(_COPYRIGHT)].decode("utf-8", "replace")},
        notes={"concepts": len(names), "concepts_held_out": len(unseen)},
    )


def draw(files: Mapping[PurePosixPath, bytes], options: BuildOptions) -> dict[PurePosixPath, dict[str, bytes]]:
    """By a picture's path without extension: each of its formats (png, svg) as a square PNG on white."""
    drawings = {path: content for path, content in sorted(files.items()) if path.suffix == ".svg"}
    texts = [content.decode("utf-8", "replace") for content in drawings.values()]
    options.progress.say(f"drawing {len(texts)} pictures at {options.image_size} pixels")
    drawn = rasterise_all(texts, progress=lambda done: options.progress.count(done, len(texts)))
    ready = {path: png for path, png in zip(drawings, drawn, strict=True) if png is not None}
    ready.update((path, content) for path, content in files.items() if path.suffix == ".png")
    squares: dict[PurePosixPath, dict[str, bytes]] = defaultdict(dict)
    for path, content in sorted(ready.items()):
        try:
            squares[path.with_suffix("")][path.suffix[1:]] = _square(content, options.image_size)
        except BrokenSample:
            continue
    return squares


def first_line(files: Mapping[PurePosixPath, bytes], stem: PurePosixPath) -> str | None:
    """The caption of the picture: the first line of its text file, if it has one."""
    text = files.get(stem.with_name(f"{stem.name}.txt"), b"").decode("utf-8", "replace")
    return (text.splitlines() or [""])[0].strip() or None


def split_pictures(
    pictures: Mapping[PurePosixPath, Mapping[str, bytes]], captions: Mapping[PurePosixPath, str], unseen: set[str]
) -> dict[str, list[Sample]]:
    """Sort the captioned pictures into train and test."""
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    for stem, caption in captions.items():
        place = stem.relative_to(_ROOT)
        for form, picture in pictures[stem].items():
            key = f"{'_'.join(place.parts)}-{form}".replace(".", "_")
            tags = [part.replace("_", " ") for part in place.parts[:-1]]
            metadata = {"label": caption, "tags": tags, "concept": caption, "vendor": f"tuxpaint-{form}"}
            splits["test" if caption in unseen else "train"].append(Sample(key, picture, caption, metadata))
    return splits


def _read_package(package: Path) -> dict[PurePosixPath, bytes]:
    """The pictures, their texts and the copyright file, streamed out of the package; nothing is unpacked."""

    def wanted(name: str) -> bool:
        path = PurePosixPath(name)
        return path == PurePosixPath(_COPYRIGHT) or (path.is_relative_to(_ROOT) and path.suffix in wanted_suffixes)

    wanted_suffixes = {".png", ".svg", ".txt"}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpacker:
        assert unpacker.stdout is not None
        return {PurePosixPath(name): content for name, content in read_members(unpacker.stdout, wanted)}


def _square(content: bytes, size: int) -> bytes:
    """The picture fitted into size x size on white, as PNG."""
    picture = decode_image(content)
    scale = size / max(picture.size)
    fitted = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    ground = Image.new("RGB", (size, size), "white")
    ground.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    stream = io.BytesIO()
    ground.save(stream, "PNG")
    return stream.getvalue()
