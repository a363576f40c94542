# SPDX-License-Identifier: Apache-2.0
"""The set "emoji": one concept drawn in six styles; five train, the sixth is the test.

A concept is an emoji that all four vendors with a code-point table drew; the other two are paired by icon name. Its
caption is the English label of emojibase, its tags are emojibase's. Splits:

* train: noto, twemoji, openmoji, emojione, noto-v1, without the held-out tenth of the concepts;
* test-seen: fluent-emoji-flat, the train concepts (a style never seen, captions seen);
* test-unseen: fluent-emoji-flat, the held-out concepts (neither style nor concept seen).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.data.archives import read_members
from clipkit.data.building import BuildOptions, BuildReport, Content, Source, build_set, held_out
from clipkit.data.fetch import NpmPackage, fetch_npm
from clipkit.data.iconify import IconSet
from clipkit.data.raster import need_resvg, rasterise_all
from clipkit.data.shardwriter import Sample

VENDORS = {
    "noto": NpmPackage(
        "@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"
    ),
    "twemoji": NpmPackage(
        "@iconify-json/twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"
    ),
    "openmoji": NpmPackage(
        "@iconify-json/openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5"
    ),
    "fluent-emoji-flat": NpmPackage(
        "@iconify-json/fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"
    ),
    "emojione": NpmPackage(
        "@iconify-json/emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"
    ),
    "noto-v1": NpmPackage(
        "@iconify-json/noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"
    ),
}
WORDS = NpmPackage("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
CHARTED = ("noto", "twemoji", "openmoji", "fluent-emoji-flat")  # their packages map code points to names
TEST_VENDOR = "fluent-emoji-flat"
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Concept:
    """One emoji: code points, English label and tags, and its icon's name in each vendor's set."""

    code: str
    label: str
    tags: tuple[str, ...]
    names: Mapping[str, str]


def build(destination: Path, **settings: Any) -> BuildReport:
    """Fetch the seven packages (16 MB) and build the set at `destination`; see the module for what is in it.

    `settings` are the fields of `BuildOptions`: image_size=32, seed=0, cache, offline_cache, force, progress.
    """
    options = BuildOptions(**settings)
    return build_set("emoji", destination, options, lambda: _make(options))


def _make(options: BuildOptions) -> Content:
    need_resvg()  # before anything is fetched
    packages = [*VENDORS.values(), WORDS]
    tarballs = fetch_npm(
        packages, cache=options.cache, offline_cache=options.offline_cache, announce=options.progress.say
    )
    sets = {vendor: load_icon_set(tarballs[package.name]) for vendor, package in VENDORS.items()}
    words = dict(read_members(tarballs[WORDS.name], {"package/en/data.json", "package/LICENSE"}.__contains__))
    concepts = pair_concepts(sets, json.loads(words["package/en/data.json"]))
    sources = [sets[vendor].source(package.name, package.version) for vendor, package in VENDORS.items()]
    sources.append(
        Source(WORDS.name, WORDS.version, "Emojibase (labels, tags)", "Miles Johnson", "MIT", "licences/emojibase.txt")
    )
    unseen = held_out((concept.code for concept in concepts), HELD_OUT_SHARE, options.seed)
    return Content(
        splits=draw_splits(sets, concepts, unseen, options),
        captions=[concept.label for concept in concepts],
        sources=sources,
        licence_texts={"emojibase": words["package/LICENSE"].decode()},
        notes={"concepts": len(concepts), "concepts_held_out": len(unseen), "test_vendor": TEST_VENDOR},
    )


def load_icon_set(tarball: Path) -> IconSet:
    """An icon set from the tarball of its package."""
    names = {f"package/{part}.json": part for part in ("icons", "info", "chars")}
    parts = {names[name]: json.loads(content) for name, content in read_members(tarball, names.__contains__)}
    if missing := {"icons", "info"} - set(parts):
        raise ValueError(f"{tarball}: it lacks {', '.join(sorted(missing))}.json")
    return IconSet(parts["icons"], parts["info"], parts.get("chars", {}))


def pair_concepts(sets: Mapping[str, IconSet], entries: Sequence[Mapping[str, Any]]) -> list[Concept]:
    """The concepts that every charted vendor drew, in emojibase's order, with their names in all sets."""
    charts = {vendor: {_plain(code): name for code, name in sets[vendor].chars.items()} for vendor in CHARTED}
    concepts = []
    for entry in entries:
        code = _plain(entry["hexcode"])
        if not all(code in chart for chart in charts.values()):
            continue
        names = {vendor: chart[code] for vendor, chart in charts.items()}
        for vendor in sets.keys() - charts.keys():
            match = next((name for name in names.values() if name in sets[vendor]), None)
            if match is not None:
                names[vendor] = match
        concepts.append(Concept(code, entry["label"], tuple(entry.get("tags", ())), names))
    return concepts


def draw_splits(
    sets: Mapping[str, IconSet], concepts: Sequence[Concept], unseen: set[str], options: BuildOptions
) -> dict[str, list[Sample]]:
    """Draw every picture that a split needs and sort it into its split; what cannot be drawn is left out."""
    wanted = []
    for concept in concepts:
        for vendor, name in concept.names.items():
            if vendor == TEST_VENDOR:
                wanted.append(("test-unseen" if concept.code in unseen else "test-seen", vendor, name, concept))
            elif concept.code not in unseen:
                wanted.append(("train", vendor, name, concept))
    options.progress.say(f"drawing {len(wanted)} pictures at {options.image_size} pixels")
    drawings = [sets[vendor].svg(name, options.image_size) for _, vendor, name, _ in wanted]
    pictures = rasterise_all(drawings, progress=lambda done: options.progress.count(done, len(drawings)))
    splits: dict[str, list[Sample]] = {"train": [], "test-seen": [], "test-unseen": []}
    for (split, vendor, _, concept), picture in zip(wanted, pictures, strict=True):
        if picture is None:
            continue
        metadata = {"label": concept.label, "tags": list(concept.tags), "concept": concept.code, "vendor": vendor}
        splits[split].append(Sample(f"{vendor}-{concept.code}", picture, concept.label, metadata))
    return splits


def _plain(code: str) -> str:
    """Code points in lower case without the variation selector, which vendors put in or leave out at will."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")
