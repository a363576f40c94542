# SPDX-License-Identifier: Apache-2.0
"""The page of a search: for each query its nearest pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from clipkit.evaluate.searching import Found
from clipkit.report.gallery import result_tile
from clipkit.report.page import page, section, write_page
from clipkit.report.pictures import picture


def write_results(path: Path, found: Sequence[tuple[str, Sequence[Found]]], *, source: str) -> Path:
    """Write the page of one or several queries. `source` says in words what was searched with what."""
    title = " · ".join(query for query, _ in found)
    sections = []
    for number, (query, hits) in enumerate(found):
        tiles = "".join(
            result_tile(picture(hit.image_bytes, hit.caption, side=256), hit.caption, hit.key, hit.score)
            for hit in hits
        )
        heading = query if len(found) > 1 else f"The {len(hits)} nearest pictures"
        sections.append(section(heading, f"query-{number}", f'<ol class="results">{tiles}</ol>' if hits else ""))
    lead = f'<p class="remark">{escape(source)}</p>'
    return write_page(
        path, page(title, "clipkit search", lead, sections, "Scores are cosines of image and text features.")
    )
