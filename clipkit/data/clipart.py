# SPDX-License-Identifier: Apache-2.0
"""Captions of clip art: what the RDF inside a drawing of the Open Clip Art Library says, where it is about the drawing.

A drawing's title is its caption and its subjects are its tags. Many drawings carry the title of the collection they
were uploaded with ("Lemon SVG theme"); a title that more than MAX_SHARED drawings have is taken for one and dropped.
Titles are in the words of hundreds of people: most are English, some Italian, French or Spanish, some misspelt.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from xml.etree import ElementTree

MAX_SHARED = 10
PUBLIC_DOMAIN = frozenset(
    {"http://web.resource.org/cc/PublicDomain", "http://creativecommons.org/licenses/publicdomain/"}
)
_DC = "{http://purl.org/dc/elements/1.1/}"
_CC = "{http://web.resource.org/cc/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_BY_SOMEBODY = re.compile(r"^clip ?art by .*? - ", re.IGNORECASE)
_NO_TAGS = frozenset({"hash", "unsorted"})  # left behind by the library's own tools
_WORD = re.compile(r"[^\W\d_]{3}")  # a title without three letters in a row ("fc23") tells a person nothing


@dataclass(frozen=True)
class Description:
    """What a drawing says about itself; `title` is "" where it says nothing."""

    title: str
    tags: tuple[str, ...]
    author: str
    licence: str


def describe(svg: bytes) -> Description | None:
    """The description in a drawing's RDF; None where it has none that can be read."""
    try:
        work = next(ElementTree.fromstring(svg).iter(f"{_CC}Work"), None)
    except (ElementTree.ParseError, ValueError, LookupError):
        return None
    if work is None:
        return None
    title = _BY_SOMEBODY.sub("", _repaired(_text(work.find(f"{_DC}title"))))
    title = " ".join(title.replace("_", " ").split())
    author = _text(work.find(f"{_DC}creator/{_CC}Agent/{_DC}title"))
    tags = dict.fromkeys(_text(tag).replace("_", " ") for tag in work.iterfind(f"{_DC}subject//{_RDF}li"))
    nothing = {"", *_NO_TAGS, author.casefold()}
    licence = work.find(f"{_CC}license")
    return Description(
        title=title if _WORD.search(title) else "",
        tags=tuple(tag for tag in tags if tag.casefold() not in nothing and not tag.startswith("0x")),
        author=author,
        licence="" if licence is None else licence.get(f"{_RDF}resource", ""),
    )


def choose(files: Mapping[PurePosixPath, bytes]) -> tuple[dict[PurePosixPath, Description], Counter[str]]:
    """The drawings with a caption of their own that are in the public domain; and of the others, how many for what
    reason."""
    described = {path: describe(content) for path, content in sorted(files.items())}
    titles = Counter(one.title.casefold() for one in described.values() if one is not None)
    chosen, dropped = {}, Counter[str]()
    for path, one in described.items():
        if one is None or not one.title:
            dropped["no title"] += 1
        elif one.licence not in PUBLIC_DOMAIN:
            dropped["not declared to be in the public domain"] += 1
        elif titles[one.title.casefold()] > MAX_SHARED:
            dropped["title of a collection"] += 1
        else:
            chosen[path] = one
    return chosen, dropped


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None else (element.text or "").strip()


def _repaired(title: str) -> str:
    """Undo what web forms did to letters with accents: HTML entities, and UTF-8 that was read as Latin-1."""
    plain = html.unescape(title)
    try:
        return plain.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return plain
