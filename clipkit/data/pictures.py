# SPDX-License-Identifier: Apache-2.0
"""Decode picture bytes to 8-bit RGB, distrusting them."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from clipkit.data.records import BrokenSample

Pixels = NDArray[np.uint8]

MAX_PIXELS = 64 << 20
# Formats whose decoders are plain C in Pillow or its libraries; others (EPS, ...) would start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_EXIF_ORIENTATION = 0x0112
# Pillow's parsers raise every one of these on damaged files.
_DECODER_ERRORS = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
)


def decode_image(content: bytes, *, enough: int | None = None) -> Image.Image:
    """The picture as an RGB image, upright, alpha laid over white, 16 bits scaled to 8.

    With `enough`, a JPEG whose sides are more than twice that many pixels is decoded at a half, a quarter or an
    eighth of its size, neither side below `enough`. Raises BrokenSample ("undecodable picture", "too many pixels").
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise _broken("too many pixels")
                if enough is not None and picture.format == "JPEG":
                    picture.draft(None, (enough, enough))
                picture.load()
                return _to_rgb(_upright(picture))
    except Image.DecompressionBombError as error:
        raise _broken("too many pixels") from error
    except BrokenSample:
        raise
    except _DECODER_ERRORS as error:
        raise _broken("undecodable picture") from error


def _broken(reason: str) -> BrokenSample:
    return BrokenSample(reason, "", "")  # the caller knows which shard and key


def _upright(picture: Image.Image) -> Image.Image:
    if picture.getexif().get(_EXIF_ORIENTATION, 1) == 1:
        return picture
    return ImageOps.exif_transpose(picture)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode in _SIXTEEN_BIT:
        # Pillow's own conversion clips at 255 instead of scaling
        grey = np.asarray(picture).astype(np.int64).clip(0, 0xFFFF) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise _broken("undecodable picture")  # floating point has no agreed range
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        ground = Image.new("RGB", rgba.size, "white")
        ground.paste(rgba, mask=rgba.getchannel("A"))
        return ground
    return picture.convert("RGB")
