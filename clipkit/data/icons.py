# SPDX-License-Identifier: Apache-2.0
"""The set "icons": one name drawn in one colour by at least ten icon sets; five whole sets are the test.

From Iconify's collection: sets under a permissive licence, one colour, no logos. An icon's name loses its style and
size (`bell-outline-24` is a bell), and of the icons a set then has under one name the one with the shortest full
name is taken. A word is a style where a set draws many icons in it: `light` is one in Phosphor, and part of the name in
`traffic-light` elsewhere. The caption is the name with spaces. Splits:

* train: all other sets, without the held-out tenth of the names;
* test-seen: the held-out sets, the train names;
* test-unseen: the held-out sets, the held-out names.

Sets copy from each other: a train picture that is nearly a held-out set's picture of the same name is left out.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.data.archives import read_members
from clipkit.data.building import BuildOptions, BuildReport, Content, Source, build_set, held_out
from clipkit.data.fetch import NpmPackage, fetch_npm
from clipkit.data.iconify import IconSet
from clipkit.data.raster import need_resvg, rasterise_all
from clipkit.data.shardwriter import Sample

PACKAGE = NpmPackage("@iconify/json", "2.2.535", "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91")
HELD_OUT_SETS = frozenset({"carbon", "iconoir", "mingcute", "ph", "tdesign"})
HELD_OUT_SHARE = 0.1
MIN_SETS = 10
PERMISSIVE = frozenset(
    {"MIT", "Apache-2.0", "ISC", "BSD-3-Clause", "Unlicense", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "OFL-1.1"}
)
STYLES = frozenset(
    {"outline", "outlined", "filled", "fill", "line", "linear", "solid", "regular", "light", "bold", "thin", "duotone"}
    | {"duo", "rounded", "round", "sharp", "twotone", "two", "tone", "broken", "bulk", "glyph", "stroke", "stroked"}
)
STYLED_ICONS = 20  # any number from 10 to 40 gives the same names
_COPY_DIFFERENCE = 3.0  # mean difference in grey levels (of 255) below which two pictures are one drawing


@dataclass(frozen=True)
class Icon:
    """One icon: its set, its own name, the name it shares with other sets, and its drawing."""

    vendor: str
    own_name: str
    name: str
    svg: str


def build(destination: Path, **settings: Any) -> BuildReport:
    """Fetch the package (104 MB) and build the set at `destination`; see the module for what is in it.

    `settings` are the fields of `BuildOptions`: image_size=32, seed=0, cache, offline_cache, force, progress.
    """
    options = BuildOptions(**settings)
    return build_set("icons", destination, options, lambda: _make(options))


def _make(options: BuildOptions) -> Content:
    need_resvg()  # before anything is fetched
    tarballs = fetch_npm(
        [PACKAGE], cache=options.cache, offline_cache=options.offline_cache, announce=options.progress.say
    )
    options.progress.say("reading the icon sets")
    icons, sources = collect(_icon_sets(tarballs[PACKAGE.name]), options.image_size)
    options.progress.say(f"drawing {len(icons)} pictures at {options.image_size} pixels")
    pictures = rasterise_all(
        [icon.svg for icon in icons], progress=lambda done: options.progress.count(done, len(icons))
    )
    names = sorted({icon.name for icon in icons})
    unseen = held_out(names, HELD_OUT_SHARE, options.seed)
    splits, copies = split_pictures(icons, pictures, unseen)
    used = {sample.metadata["vendor"] for samples in splits.values() for sample in samples}
    return Content(
        splits=splits,
        captions=[_caption(name) for name in names],
        sources=[sources[vendor] for vendor in sorted(used)],
        notes={
            "concepts": len(names),
            "concepts_held_out": len(unseen),
            "sets_held_out": sorted(HELD_OUT_SETS),
            "copies_left_out_of_train": copies,
        },
    )


def collect(sets: Iterator[tuple[str, IconSet]], image_size: int) -> tuple[list[Icon], dict[str, Source]]:
    """The icons whose shared name at least MIN_SETS usable sets have, by name and set, and where each set is from."""
    found: dict[str, dict[str, Icon]] = defaultdict(dict)
    sources = {}
    for vendor, icon_set in sets:
        if not is_usable(icon_set.info, vendor):
            continue
        sources[vendor] = icon_set.source(PACKAGE.name, PACKAGE.version)
        for name, own_name in shared_names(icon_set.content["icons"]).items():
            found[name][vendor] = Icon(vendor, own_name, name, icon_set.svg(own_name, image_size))
    icons = [
        icon
        for name, by_vendor in sorted(found.items())
        if len(by_vendor) >= MIN_SETS
        for _, icon in sorted(by_vendor.items())
    ]
    return icons, sources


def is_usable(info: Mapping[str, Any], vendor: str) -> bool:
    """Whether a set is permissively licensed, of one colour, public, and not of brands."""
    return (
        info.get("license", {}).get("spdx") in PERMISSIVE
        and info.get("palette") is False
        and not info.get("hidden")
        and info.get("category") != "Logos"
        and "brands" not in vendor
    )


def shared_names(icons: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """From the name without style and size to the set's own name of the plainest such icon."""
    own_names = [name for name, icon in icons.items() if not icon.get("hidden")]
    icons_with = Counter(word for name in own_names for word in set(name.split("-")[1:]))
    styles = {word for word in STYLES if icons_with[word] >= STYLED_ICONS}
    plainest: dict[str, str] = {}
    for own_name in sorted(own_names, key=lambda name: (len(name), name)):
        words = own_name.split("-")
        while len(words) > 1 and (words[-1] in styles or words[-1].isdigit()):
            words.pop()
        name = "-".join(words)
        if not name.isdigit():
            plainest.setdefault(name, own_name)
    return plainest


def split_pictures(
    icons: Sequence[Icon], pictures: Sequence[bytes | None], unseen: set[str]
) -> tuple[dict[str, list[Sample]], int]:
    """Sort the pictures into splits; also how many copies of held-out drawings were left out of train."""
    splits: dict[str, list[Sample]] = {"train": [], "test-seen": [], "test-unseen": []}
    guarded: dict[str, list[NDArray[np.int16]]] = defaultdict(list)
    drawn = [(icon, picture) for icon, picture in zip(icons, pictures, strict=True) if picture is not None]
    for icon, picture in drawn:
        if icon.vendor in HELD_OUT_SETS:
            guarded[icon.name].append(_grey(picture))
            splits["test-unseen" if icon.name in unseen else "test-seen"].append(_sample(icon, picture))
    copies = 0
    for icon, picture in drawn:
        if icon.vendor in HELD_OUT_SETS or icon.name in unseen:
            continue
        grey = _grey(picture)
        if any(np.abs(grey - other).mean() < _COPY_DIFFERENCE for other in guarded[icon.name]):
            copies += 1
        else:
            splits["train"].append(_sample(icon, picture))
    return splits, copies


def _icon_sets(tarball: Path) -> Iterator[tuple[str, IconSet]]:
    prefix, suffix = "package/json/", ".json"
    for name, content in read_members(tarball, lambda name: name.startswith(prefix) and name.endswith(suffix)):
        parsed = json.loads(content)
        if "info" in parsed:
            yield name[len(prefix) : -len(suffix)], IconSet(parsed, parsed["info"])


def _sample(icon: Icon, picture: bytes) -> Sample:
    caption = _caption(icon.name)
    metadata = {"label": caption, "tags": [], "concept": icon.name, "vendor": icon.vendor, "icon": icon.own_name}
    return Sample(f"{icon.vendor}__{icon.name}", picture, caption, metadata)


def _caption(name: str) -> str:
    return name.replace("-", " ")


def _grey(png: bytes) -> NDArray[np.int16]:
    """Ink per pixel; an icon's single colour is all in its alpha."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGBA").getchannel("A")).astype(np.int16)
