# SPDX-License-Identifier: Apache-2.0
"""Icon sets in Iconify's JSON form: names, aliases and bodies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clipkit.data.building import Source
from clipkit.data.raster import icon_svg

_MAX_ALIAS_DEPTH = 8


@dataclass(frozen=True)
class IconSet:
    """One vendor's icons. `content` is icons.json, `chars` maps code points to names, `info` holds the licence."""

    content: Mapping[str, Any]
    info: Mapping[str, Any]
    chars: Mapping[str, str] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return self._resolve(name) is not None

    def svg(self, name: str, size: int) -> str:
        """The icon called `name` as a square SVG document; KeyError where there is none."""
        icon = self._resolve(name)
        if icon is None:
            raise KeyError(name)
        return icon_svg(icon, self.content, size)

    def source(self, package: str, version: str) -> Source:
        """Who drew the set, and on which terms."""
        licence, author = self.info["license"], self.info.get("author", {})
        return Source(
            package=package,
            version=version,
            title=self.info.get("name", package),
            author=author.get("name", "unknown"),
            spdx=licence.get("spdx") or licence.get("title", "unknown"),
            url=", ".join(dict.fromkeys(filter(None, (author.get("url"), licence.get("url"))))),
        )

    def _resolve(self, name: str) -> dict[str, Any] | None:
        """The icon with its aliases' turns and flips applied; None for an unknown name or a loop of aliases."""
        changes: dict[str, Any] = {}
        for _ in range(_MAX_ALIAS_DEPTH):
            if (icon := self.content["icons"].get(name)) is not None:
                return _changed(icon, changes)
            alias = self.content.get("aliases", {}).get(name)
            if alias is None:
                return None
            changes = _changed({key: value for key, value in alias.items() if key != "parent"}, changes)
            name = alias["parent"]
        return None


def _changed(icon: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` laid over `icon`: turns add up, flips cancel in pairs, all else replaces."""
    merged = {**icon, **changes}
    merged["rotate"] = int(icon.get("rotate", 0)) + int(changes.get("rotate", 0))
    for flip in ("hFlip", "vFlip"):
        merged[flip] = bool(icon.get(flip)) != bool(changes.get(flip))
    return merged
