# SPDX-License-Identifier: Apache-2.0
"""What the builders of real sets share: an all-or-nothing destination, the manifest, and the attribution."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clipkit.data.shardwriter import Sample, write_shards
from clipkit.errors import value_error

MANIFEST = "dataset.json"
BUILDER_VERSION = 1


class Progress:
    """What a build tells the person who waits; this one keeps silent, the command line prints."""

    def say(self, message: str) -> None:
        """One line about what begins now."""

    def count(self, done: int, total: int) -> None:
        """How far the present step is."""


@dataclass(frozen=True)
class BuildOptions:
    """What every builder takes. `cache` keeps downloads (None: the user's cache folder); with `offline_cache`, a
    folder that holds the packages, nothing is fetched; `force` replaces a set that is already there."""

    image_size: int = 32
    seed: int = 0
    cache: Path | None = None
    offline_cache: Path | None = None
    force: bool = False
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        if not 8 <= self.image_size <= 1024:
            raise value_error(
                "image_size", got=self.image_size, want="8 to 1024 pixels", fix="choose 32 or 64 for the built sets"
            )


@dataclass(frozen=True)
class Source:
    """Where pictures or words came from, and on which terms. `spdx` is a licence's SPDX id."""

    package: str
    version: str
    title: str
    author: str
    spdx: str
    url: str


@dataclass
class Content:
    """Everything a built set consists of, before it is written."""

    splits: Mapping[str, Sequence[Sample]]
    captions: Sequence[str]
    sources: Sequence[Source]
    licence_texts: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildReport:
    """What stands in a built folder: its manifest, and whether this call built it or found it complete."""

    folder: Path
    manifest: dict[str, Any]
    built: bool

    @property
    def splits(self) -> dict[str, int]:
        """Pictures per split."""
        return {name: split["samples"] for name, split in self.manifest["splits"].items()}


def build_set(name: str, destination: Path, options: BuildOptions, make: Callable[[], Content]) -> BuildReport:
    """Put the set that `make` returns at `destination`, whole or not at all.

    A complete set made with the same options is left as it is. Raises ValueError, before anything is fetched, when
    another set or a foreign folder stands there (`force` replaces a set, never a foreign folder).
    """
    destination = Path(destination).absolute()
    wanted = {"name": name, "builder": BUILDER_VERSION, "image_size": options.image_size, "seed": options.seed}
    existing = _existing_manifest(destination)
    if existing is not None and not options.force:
        if all(existing.get(key) == value for key, value in wanted.items()):
            return BuildReport(destination, existing, built=False)
        found = {key: existing.get(key) for key in wanted}
        raise value_error(
            "destination",
            got=f"{destination} with {found}",
            want=str(wanted),
            fix="add --force, or choose another --out",
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(destination)
    content = make()
    scratch = destination.parent / f".{destination.name}.building-{os.getpid()}"
    scratch.mkdir()
    try:
        manifest = _write(scratch, wanted, content)
        _swap_in(scratch, destination)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return BuildReport(destination, manifest, built=True)


def held_out(names: Iterable[str], fraction: float, seed: int) -> set[str]:
    """A fixed share of `names`, chosen by hash: the same on every machine and whatever order they come in."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return set(ranked[: int(fraction * len(ranked))])


def _existing_manifest(destination: Path) -> dict[str, Any] | None:
    """The manifest of the set at `destination`; None where there is nothing; ValueError for a foreign folder."""
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return None
    try:
        manifest = json.loads((destination / MANIFEST).read_text())
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or "builder" not in manifest:
        raise value_error(
            "destination",
            got=f"{destination}, which holds something that this command did not build",
            want="a new or empty folder",
            fix="choose another --out",
        )
    return manifest


def _write(folder: Path, wanted: Mapping[str, Any], content: Content) -> dict[str, Any]:
    splits = {name: {"samples": write_shards(folder / name, samples)} for name, samples in content.splits.items()}
    (folder / "captions.txt").write_text("".join(f"{caption}\n" for caption in content.captions), encoding="utf-8")
    (folder / "ATTRIBUTION.md").write_text(_attribution(wanted, content.sources), encoding="utf-8")
    for name, text in content.licence_texts.items():
        (folder / "licences").mkdir(exist_ok=True)
        (folder / "licences" / f"{name}.txt").write_text(text, encoding="utf-8")
    manifest = {
        **wanted,
        "splits": splits,
        "captions": len(content.captions),
        "sources": [asdict(source) for source in content.sources],
        "notes": dict(content.notes),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def _attribution(wanted: Mapping[str, Any], sources: Sequence[Source]) -> str:
    rows = "\n".join(
        f"| {source.title} | {source.author} | {source.spdx} | {source.package} {source.version} | {source.url} |"
        for source in sources
    )
    return (
        f"# Where the set '{wanted['name']}' comes from\n\n"
        f"Drawn at {wanted['image_size']} x {wanted['image_size']} pixels from the works below, margins cut or added, "
        "otherwise unchanged. "
        "Each picture and its caption stay under the licence of the work they come from;\n"
        "the field `vendor` of a sample's json says which one that is. "
        "Whoever passes the set on passes this file on too.\n\n"
        "| work | author | licence (SPDX) | package | source and licence text |\n|---|---|---|---|---|\n"
        f"{rows}\n"
    )


def _swap_in(scratch: Path, destination: Path) -> None:
    if not destination.exists():
        scratch.rename(destination)
        return
    old = scratch.with_name(scratch.name.replace(".building-", ".replaced-"))
    destination.rename(old)
    scratch.rename(destination)
    shutil.rmtree(old)


def _remove_abandoned(destination: Path) -> None:
    """Delete what builds that were killed left beside `destination`, unless their process still runs."""
    for kind in ("building", "replaced"):
        for folder in destination.parent.glob(f".{destination.name}.{kind}-*"):
            pid = folder.name.rpartition("-")[2]
            if pid.isdigit() and not _is_running(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
