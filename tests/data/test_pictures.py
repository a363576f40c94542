# SPDX-License-Identifier: Apache-2.0
"""Decoding: every colour mode right, every hostile picture refused before it costs anything."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipkit.data import BrokenSample, decode_image
from tests.data.samples import picture


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def pixel(content: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = decode_image(content)
    assert image.mode == "RGB"
    found = image.getpixel(at)
    assert isinstance(found, tuple)
    return found


def test_alpha_lies_on_white() -> None:
    assert pixel(encode(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))) == (255, 255, 255)
    assert pixel(encode(Image.new("RGBA", (4, 4), (255, 0, 0, 255)))) == (255, 0, 0)
    half = pixel(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128))))
    assert all(abs(value - 127) <= 1 for value in half)
    assert pixel(encode(Image.new("LA", (4, 4), (10, 0)))) == (255, 255, 255)
    assert pixel(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "WEBP", lossless=True)) == (255, 255, 255)


def test_palettes_with_and_without_a_transparent_colour() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 0, 200, 0])
    assert pixel(encode(image)) == (0, 200, 0)
    assert pixel(encode(image, transparency=1)) == (255, 255, 255)
    assert pixel(encode(image, "GIF")) == (0, 200, 0)


def test_a_transparent_colour_of_an_rgb_or_grey_png() -> None:
    assert pixel(encode(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))) == (255, 255, 255)
    assert pixel(encode(Image.new("L", (4, 4), 7), transparency=7)) == (255, 255, 255)


def test_grey_bilevel_and_cmyk() -> None:
    assert pixel(encode(Image.new("L", (4, 4), 99))) == (99, 99, 99)
    assert pixel(encode(Image.new("1", (4, 4), 1))) == (255, 255, 255)
    red, green, blue = pixel(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red > 200
    assert green < 60
    assert blue < 60


@pytest.mark.parametrize("value, wanted", [(0, 0), (0x80FF, 0x80), (0xFFFF, 0xFF)])
def test_sixteen_bits_are_scaled_not_clipped(value: int, wanted: int) -> None:
    image = Image.fromarray(np.full((4, 4), value, dtype=np.uint16))
    assert pixel(encode(image)) == (wanted, wanted, wanted)
    assert pixel(encode(image, "TIFF")) == (wanted, wanted, wanted)


def test_exif_orientation_is_undone() -> None:
    image = Image.new("RGB", (32, 16), "white")
    image.paste((255, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    upright = decode_image(encode(image, "JPEG", exif=exif, quality=95))
    assert upright.size == (16, 32)
    red, green, _ = upright.getpixel((14, 2))
    assert red > 200
    assert green < 80


def test_a_large_jpeg_is_decoded_no_larger_than_needed() -> None:
    content = encode(Image.linear_gradient("L").resize((1600, 1200)).convert("RGB"), "JPEG")
    assert decode_image(content).size == (1600, 1200)
    assert decode_image(content, enough=300).size == (400, 300)
    assert decode_image(content, enough=301).size == (800, 600)
    assert decode_image(content, enough=1300).size == (1600, 1200)


def bomb(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_193, 40_000, 2**31 - 1])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    content = bomb(side, side)
    tracemalloc.start()
    with pytest.raises(BrokenSample) as caught:
        decode_image(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.reason == "too many pixels"
    assert peak < 4 << 20


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_damage_is_a_broken_sample_or_a_picture_never_anything_else(form: str, data: st.DataObject) -> None:
    content = bytearray(picture(3, form=form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        mode = decode_image(bytes(content)).mode
    except BrokenSample as broken:
        mode = broken.reason
    assert mode in ("RGB", "undecodable picture", "too many pixels")


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>"])
def test_other_files_are_undecodable(content: bytes) -> None:
    with pytest.raises(BrokenSample, match="undecodable picture"):
        decode_image(content)
