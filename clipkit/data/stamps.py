# SPDX-License-Identifier: Apache-2.0
"""The set "stamps": cut-out photos and clip art with captions, from two Debian packages.

* tuxpaint-stamps-default: 1,033 photos and drawings. A text file beside a picture has an English sentence on its first
  line, the caption; the folders that the picture lies in are its tags.
* openclipart-svg: about 3,200 of its 7,458 drawings, those with a title of their own (see `clipkit.data.clipart`).

A seventh of the concepts is held out (split test). A concept is a caption without its article, its numbers and what is
in brackets: both formats of one drawing, the first and the second dog, and the violin in colour and in black and white
are on one side. What two people drew and named differently need not be.
"""

from __future__ import annotations

import io
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from PIL import Image, ImageChops

from clipkit.data.archives import read_members
from clipkit.data.building import BuildOptions, BuildReport, Content, Source, build_set, held_out
from clipkit.data.clipart import choose
from clipkit.data.fetch import fetch_debian
from clipkit.data.pictures import decode_image
from clipkit.data.raster import need_resvg, rasterise_all, why_not
from clipkit.data.records import BrokenSample
from clipkit.data.shardwriter import Sample

TUXPAINT, CLIPART = "tuxpaint-stamps-default", "openclipart-svg"
HELD_OUT_SHARE = 1 / 7
_TUXPAINT_ROOT = PurePosixPath("usr/share/tuxpaint/stamps")
_CLIPART_ROOT = PurePosixPath("usr/share/openclipart/svg")
_OVERSIZE = 4  # drawings are made larger first: many fill a small part of the page that they stand on
_NAMED = 8  # pictures left out that the screen names for each reason; dataset.json names all
_LEADING_ARTICLE = re.compile(r"^(?:an?|the)\s+")
_APART_FROM_CONCEPT = re.compile(r"\([^)]*\)|[\d\W_]")


@dataclass(frozen=True)
class Stamp:
    """One captioned picture as its package has it: a PNG file or an SVG drawing, at `place` in its collection."""

    vendor: str
    place: PurePosixPath
    content: bytes
    caption: str
    tags: tuple[str, ...]
    author: str = ""

    @property
    def concept(self) -> str:
        """What the caption is about, the same for captions that differ in form only."""
        caption = _LEADING_ARTICLE.sub("", self.caption.casefold())
        return " ".join(_APART_FROM_CONCEPT.sub(" ", caption).split()) or caption


def build(destination: Path, **settings: Any) -> BuildReport:
    """Fetch the packages (186 MB) and build the set at `destination`; see the module for what is in it.

    `settings` are the fields of `BuildOptions`: image_size=32, seed=0, cache, offline_cache, force, progress.
    """
    options = BuildOptions(**settings)
    return build_set("stamps", destination, options, lambda: _make(options))


def _make(options: BuildOptions) -> Content:
    need_resvg()  # before anything is fetched
    packages = {
        name: fetch_debian(
            name, cache=options.cache, offline_cache=options.offline_cache, announce=options.progress.say
        )
        for name in (TUXPAINT, CLIPART)
    }
    files = {name: _read_package(name, package, options) for name, package in packages.items()}
    clipart, dropped = clipart_stamps(files[CLIPART])
    stamps = [*tuxpaint_stamps(files[TUXPAINT]), *clipart]
    pictures, left_out = draw(stamps, options)
    drawn = [stamp for stamp, picture in zip(stamps, pictures, strict=True) if picture is not None]
    unseen = held_out({stamp.concept for stamp in drawn}, HELD_OUT_SHARE, options.seed)
    return Content(
        splits=split_pictures(stamps, pictures, unseen),
        captions=sorted({stamp.caption for stamp in drawn}),
        sources=[_source(name, package) for name, package in packages.items()],
        licence_texts={
            name: content[PurePosixPath(_copyright(name))].decode("utf-8", "replace") for name, content in files.items()
        },
        notes={
            "concepts": len({stamp.concept for stamp in drawn}),
            "concepts_held_out": len(unseen),
            "left_out": left_out,
            "clipart_without_caption": dict(dropped),
        },
    )


def tuxpaint_stamps(files: Mapping[PurePosixPath, bytes]) -> list[Stamp]:
    """The pictures of Tux Paint's collection that have a caption."""
    stamps = []
    for path, content in sorted(files.items()):
        if path.suffix in (".png", ".svg") and (caption := first_line(files, path.with_suffix(""))):
            place = path.relative_to(_TUXPAINT_ROOT)
            tags = tuple(part.replace("_", " ") for part in place.parts[:-1])
            stamps.append(Stamp(f"tuxpaint-{path.suffix[1:]}", place, content, caption, tags))
    return stamps


def clipart_stamps(files: Mapping[PurePosixPath, bytes]) -> tuple[list[Stamp], Counter[str]]:
    """The drawings of the Open Clip Art Library that have a caption, and how many others there are for what reason."""
    drawings = {path: content for path, content in files.items() if path.suffix == ".svg"}
    chosen, dropped = choose(drawings)
    stamps = [
        Stamp("openclipart", path.relative_to(_CLIPART_ROOT), drawings[path], one.title, one.tags, one.author)
        for path, one in chosen.items()
    ]
    return stamps, dropped


def first_line(files: Mapping[PurePosixPath, bytes], stem: PurePosixPath) -> str | None:
    """The caption of the picture: the first line of its text file, if it has one."""
    text = files.get(stem.with_name(f"{stem.name}.txt"), b"").decode("utf-8", "replace")
    return (text.splitlines() or [""])[0].strip() or None


def draw(stamps: Sequence[Stamp], options: BuildOptions) -> tuple[list[bytes | None], dict[str, list[str]]]:
    """Each picture as a square PNG on white, None where that cannot be had; and the names of those by reason."""
    ready: list[bytes | None] = [stamp.content for stamp in stamps]
    numbers = [number for number, stamp in enumerate(stamps) if stamp.place.suffix == ".svg"]
    texts = [stamps[number].content.decode("utf-8", "replace") for number in numbers]
    options.progress.say(f"drawing {len(texts)} pictures at {options.image_size} pixels")
    drawn = rasterise_all(
        texts, within=_OVERSIZE * options.image_size, progress=lambda done: options.progress.count(done, len(texts))
    )
    left_out: dict[str, list[str]] = defaultdict(list)
    for number, text, picture in zip(numbers, texts, drawn, strict=True):
        ready[number] = picture
        if picture is None:
            left_out[why_not(text)].append(_name(stamps[number]))
    for number, content in enumerate(ready):
        try:
            is_drawing = stamps[number].place.suffix == ".svg"
            ready[number] = content and _square(content, options.image_size, trim=is_drawing)
        except BrokenSample as broken:
            ready[number] = None
            left_out[broken.reason].append(_name(stamps[number]))
    for reason, names in left_out.items():
        more = f" and {len(names) - _NAMED} more (dataset.json)" if len(names) > _NAMED else ""
        options.progress.say(f"left out, {reason}: {', '.join(names[:_NAMED])}{more}")
    return ready, dict(left_out)


def split_pictures(
    stamps: Sequence[Stamp], pictures: Sequence[bytes | None], unseen: set[str]
) -> dict[str, list[Sample]]:
    """Sort the pictures that there are into train and test."""
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    for stamp, picture in zip(stamps, pictures, strict=True):
        if picture is None:
            continue
        key = f"{stamp.vendor}_{'_'.join(stamp.place.with_suffix('').parts)}".replace(".", "_")
        metadata = {
            "label": stamp.caption,
            "tags": list(stamp.tags),
            "concept": stamp.concept,
            "vendor": stamp.vendor,
            **({"author": stamp.author} if stamp.author else {}),
        }
        splits["test" if stamp.concept in unseen else "train"].append(Sample(key, picture, stamp.caption, metadata))
    return splits


def _read_package(name: str, package: Path, options: BuildOptions) -> dict[PurePosixPath, bytes]:
    """The pictures, their texts and the copyright file, streamed out of the package; nothing is unpacked."""
    options.progress.say(f"reading {package.name}")
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpacker:
        assert unpacker.stdout is not None
        return {PurePosixPath(member): content for member, content in read_members(unpacker.stdout, _wanted(name))}


def _wanted(name: str) -> Callable[[str], bool]:
    root, suffixes = {
        TUXPAINT: (_TUXPAINT_ROOT, {".png", ".svg", ".txt"}),
        CLIPART: (_CLIPART_ROOT, {".svg"}),
    }[name]
    copyright_file = PurePosixPath(_copyright(name))

    def wanted(member: str) -> bool:
        path = PurePosixPath(member)
        return path == copyright_file or (path.is_relative_to(root) and path.suffix in suffixes)

    return wanted


def _copyright(name: str) -> str:
    return f"usr/share/doc/{name}/copyright"


def _source(name: str, package: Path) -> Source:
    title, author, spdx = {
        TUXPAINT: ("Tux Paint stamps", "Bill Kendrick and the Tux Paint contributors", "GPL-2.0-only"),
        CLIPART: ("Open Clip Art Library 0.18", "named in the field `author` of each picture's json", "CC-PDDC"),
    }[name]
    version = unquote(package.name.removeprefix(f"{name}_").rpartition("_")[0])  # apt writes an epoch's colon as %3a
    return Source(f"Debian {name}", version, title, author, spdx, f"licences/{name}.txt")


def _name(stamp: Stamp) -> str:
    return f"{stamp.vendor.partition('-')[0]}/{stamp.place}"


def _square(content: bytes, size: int, *, trim: bool) -> bytes:
    """The picture, with `trim` without the empty page around it, fitted into size x size on white, as PNG."""
    picture = decode_image(content)
    if trim:
        picture = picture.crop(ImageChops.invert(picture).getbbox())
    scale = size / max(picture.size)
    fitted = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    ground = Image.new("RGB", (size, size), "white")
    ground.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    stream = io.BytesIO()
    ground.save(stream, "PNG")
    return stream.getvalue()
