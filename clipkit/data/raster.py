# SPDX-License-Identifier: Apache-2.0
"""SVG drawings to small square PNG pictures, through resvg (a wheel with no system library)."""

from __future__ import annotations

import io
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

_POOL_PAYS_FROM = 1000  # starting two processes costs about as much as drawing this many pictures
_CHUNK = 256
# A drawing may refer to itself (#id) or carry its pixels along; a file or an address elsewhere is not followed.
_OUTSIDE_REFERENCE = re.compile(r"""href\s*=\s*["'](?!\s*(?:#|data:))|url\(\s*["']?(?!\s*["']?#)""", re.IGNORECASE)

_TEXT = re.compile(r"<(?:\w+:)?(?:text|flowRoot)\b")


def need_resvg() -> Any:
    """The resvg module, or a ValueError that says how to get it."""
    try:
        import resvg_py
    except ImportError as error:
        raise ValueError("drawing SVG needs the package resvg-py: pip install resvg-py") from error
    return resvg_py


def icon_svg(icon: Mapping[str, Any], defaults: Mapping[str, Any], size: int) -> str:
    """An icon of an Iconify JSON set as a square SVG document of `size` pixels, its box letterboxed.

    `icon` holds body and optionally left, top, width, height, rotate (quarter turns), hFlip, vFlip; `defaults` is
    the set, whose box sizes apply where the icon has none.
    """
    left, top, width, height = (
        float(icon.get(name, defaults.get(name, fallback)))
        for name, fallback in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    body = icon["body"]
    centre_x, centre_y = left + width / 2, top + height / 2
    steps = []
    if turns := int(icon.get("rotate", 0)) % 4:
        steps.append(f"rotate({90 * turns} {centre_x} {centre_y})")
    flips = -1 if icon.get("hFlip") else 1, -1 if icon.get("vFlip") else 1
    if flips != (1, 1):
        steps.append(
            f"translate({centre_x} {centre_y}) scale({flips[0]} {flips[1]}) translate({-centre_x} {-centre_y})"
        )
    if steps:
        body = f'<g transform="{" ".join(steps)}">{body}</g>'
    side = max(width, height)
    box = f"{centre_x - side / 2:g} {centre_y - side / 2:g} {side:g} {side:g}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{box}">{body}</svg>'
    )


def rasterise(svg: str, within: int | None = None) -> bytes | None:
    """The drawing as PNG bytes; None where it cannot be drawn, refers to something outside itself, or is blank.

    `within` fits it into a square of that many pixels instead of the size it gives itself. Text in it is not drawn.
    """
    if _OUTSIDE_REFERENCE.search(svg):
        return None
    try:
        # System fonts would make the pixels depend on the machine, and loading them costs as much as the drawing.
        png = need_resvg().svg_to_bytes(svg_string=svg, skip_system_fonts=True, dpi=96, width=within, height=within)
    except ValueError:
        return None
    return None if _is_blank(png) else png


def why_not(svg: str) -> str:
    """For a person: why `rasterise` gave None for this drawing."""
    if _OUTSIDE_REFERENCE.search(svg):
        return "refers to something outside itself"
    return "holds text alone, which needs a font" if _TEXT.search(svg) else "blank or broken"


def rasterise_all(
    drawings: Sequence[str],
    *,
    within: int | None = None,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[bytes | None]:
    """`rasterise` over many drawings, in order, on all cores when there are enough of them to pay for it.

    The renderer holds the GIL, hence processes. `progress` is called with the number done so far.
    """
    need_resvg()
    processes = processes or usable_cores()
    chunks = [drawings[start : start + _CHUNK] for start in range(0, len(drawings), _CHUNK)]
    results: list[bytes | None] = []
    for chunk in _map_chunks(chunks, within, processes if len(drawings) >= _POOL_PAYS_FROM else 1):
        results.extend(chunk)
        if progress is not None:
            progress(len(results))
    return results


def usable_cores() -> int:
    """The cores that this process may use, which in a container are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _map_chunks(chunks: Sequence[Sequence[str]], within: int | None, processes: int) -> Iterator[list[bytes | None]]:
    draw = partial(_rasterise_chunk, within=within)
    if processes == 1:
        yield from map(draw, chunks)
        return
    # spawn, not fork: the caller may hold threads (torch) that a forked child would inherit half alive
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(chunks)), mp_context=context) as pool:
        yield from pool.map(draw, chunks)


def _rasterise_chunk(chunk: Sequence[str], within: int | None) -> list[bytes | None]:
    return [rasterise(svg, within) for svg in chunk]


def _is_blank(png: bytes) -> bool:
    """Whether nothing but one colour would be seen on a white ground."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        rgba = picture.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, "white")
    ground.alpha_composite(rgba)
    return len(ground.convert("RGB").getcolors(2) or "many") == 1
