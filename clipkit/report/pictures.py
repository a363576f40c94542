# SPDX-License-Identifier: Apache-2.0
"""Pictures inside a page: decoded, made small, written as base64 PNG, so that nothing but pixels reaches the page."""

from __future__ import annotations

import base64
import io
from html import escape

SIDE = 128


def picture(image_bytes: bytes, alt: str, side: int = SIDE) -> str:
    """An `<img>` with the picture inline, at most `side` pixels wide and high; `alt` is escaped here."""
    from clipkit.data import decode_image

    image = decode_image(image_bytes, enough=side)
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    # Small pictures are enlarged by whole pixels; smoothing would blur the little that the model saw.
    sharp = ' class="sharp"' if max(image.size) <= 64 else ""
    return (
        f'<img{sharp} src="data:image/png;base64,{data}" width="{image.width}" height="{image.height}" '
        f'alt="{escape(alt)}" decoding="async">'
    )
