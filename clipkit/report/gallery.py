# SPDX-License-Identifier: Apache-2.0
"""What a model retrieves, to look at: pictures with their nearest captions, captions with their nearest pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from html import escape

from clipkit.evaluate import EmbeddedSet, nearest
from clipkit.evaluate.ranking import positive_pairs, query_ranks
from clipkit.report.pictures import picture

SHOWN = 12
NEAREST = 5
ROW_LIMIT = 1024


def pictures_to_captions(embedded: EmbeddedSet, read: Callable[[int], bytes], shown: int = SHOWN) -> str:
    """Cards: a picture, its five nearest captions, and where its own caption stands."""
    images = embedded.images
    pairs = positive_pairs(embedded.positives, len(images), len(embedded.captions))
    ranks = query_ranks(images.features, embedded.caption_features, pairs).tolist()
    asking = [row for row, own in enumerate(embedded.positives) if own]
    chosen = spread(asking, ranks, images.keys, shown)
    scores, indexes = nearest(images.features[chosen], embedded.caption_features, NEAREST)
    cards = []
    for row, best, found in zip(chosen, scores.tolist(), indexes.tolist(), strict=True):
        own = set(embedded.positives[row])
        lines = "".join(
            _ranked_line(embedded.captions[index], score, index in own)
            for index, score in zip(found, best, strict=True)
        )
        caption = images.captions[row]
        cards.append(
            f'<li class="card reading">{picture(read(images.ids[row]), caption)}'
            f'<div>{_asked(caption, ranks[row], len(embedded.captions))}<ol class="ranked">{lines}</ol></div></li>'
        )
    return f'<ul class="cards">{"".join(cards)}</ul>' if cards else ""


def captions_to_pictures(embedded: EmbeddedSet, read: Callable[[int], bytes], shown: int = SHOWN) -> str:
    """Cards: a caption, its five nearest pictures, and where its own picture stands."""
    images = embedded.images
    pairs = positive_pairs(embedded.positives, len(images), len(embedded.captions))[:, [1, 0]]
    ranks = query_ranks(embedded.caption_features, images.features, pairs).tolist()
    own_pictures: dict[int, set[int]] = {}
    for caption, row in pairs.tolist():
        own_pictures.setdefault(caption, set()).add(row)
    chosen = spread(sorted(own_pictures), ranks, embedded.captions, shown)
    scores, indexes = nearest(embedded.caption_features[chosen], images.features, NEAREST)
    cards = []
    for caption, best, found in zip(chosen, scores.tolist(), indexes.tolist(), strict=True):
        own = min(own_pictures[caption])
        missed = "" if own_pictures[caption] & set(found) else picture(read(images.ids[own]), images.captions[own])
        tiles = "".join(
            _tile(picture(read(images.ids[row]), images.captions[row]), score, row in own_pictures[caption])
            for row, score in zip(found, best, strict=True)
        )
        cards.append(
            f'<li class="card">{_asked(embedded.captions[caption], ranks[caption], len(images), missed)}'
            f'<ol class="strip">{tiles}</ol></li>'
        )
    return f'<ul class="cards">{"".join(cards)}</ul>' if cards else ""


def spread(asking: Sequence[int], ranks: Sequence[int], names: Sequence[str], shown: int) -> list[int]:
    """`shown` of the rows `asking`, evenly spaced when all are ordered from the best rank of their answer to the worst.

    Whatever share of the set is right has about that share of the chosen. Equal ranks are ordered by a hash of the
    name, so that the choice is the same every time and follows no alphabet.
    """
    order = sorted(asking, key=lambda row: (ranks[row], hashlib.sha256(names[row].encode()).digest(), row))
    count = min(shown, len(order))
    return [order[int((position + 0.5) * len(order) / count)] for position in range(count)]


def result_tile(image: str, caption: str, where: str, score: float) -> str:
    """One picture of a list of search results."""
    return f'<li>{image}<p>{escape(caption)}</p><p class="where">{score:.3f} · {escape(where)}</p></li>'


def _ranked_line(text: str, score: float, right: bool) -> str:
    return (
        f'<li{_marked(right)}><span class="text">{_tick(right)}{escape(text)}</span>'
        f'<span class="score">{score:.2f}</span></li>'
    )


def _tile(image: str, score: float, right: bool) -> str:
    return f'<li{_marked(right)}>{image}<span class="score">{_tick(right)}{score:.2f}</span></li>'


def _marked(right: bool) -> str:
    return ' class="right"' if right else ""


def _tick(right: bool) -> str:
    return '<span aria-hidden="true">✓ </span><span class="unseen">right: </span>' if right else ""


def _asked(caption: str, rank: int, candidates: int, missed: str = "") -> str:
    """The right caption and the place that it (or its picture) was found at; `missed` is the picture wanted."""
    place = f'<span class="place">{rank + 1:,} of {candidates:,}</span>'
    return f'<p class="asked"><span class="words">{missed}{escape(caption)}</span> {place}</p>'
