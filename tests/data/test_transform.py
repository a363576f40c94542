# SPDX-License-Identifier: Apache-2.0
"""Pictures to squares: open_clip's geometry, and randomness that belongs to the sample, not to the batch."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.data import ImageTransform, decode_image
from clipkit.data.captions import with_tags
from clipkit.data.transform import normalise
from tests.data.samples import MEAN, STD, picture


def evaluate(size: int, **options: object) -> ImageTransform:
    return ImageTransform(size, MEAN, STD, train=False, **options)


@pytest.mark.parametrize("shape", [(100, 75), (75, 100), (64, 64), (33, 90), (500, 41)])
def test_evaluation_is_shorter_side_then_centre(shape: tuple[int, int]) -> None:
    """open_clip's Resize(32, bicubic) and CenterCrop(32), written out."""
    image = decode_image(picture(5, size=shape))
    width, height = shape
    if width < height:
        resized = image.resize((32, int(32 * height / width)), Image.Resampling.BICUBIC)
    else:
        resized = image.resize((int(32 * width / height), 32), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 32) / 2.0), round((resized.height - 32) / 2.0)
    wanted = np.asarray(resized.crop((left, top, left + 32, top + 32)))
    got = evaluate(32).square(picture(5, size=shape), seed=0, epoch=0, index=0)
    assert np.array_equal(got, wanted)


def test_calling_it_gives_normalised_floats() -> None:
    image = decode_image(picture(5, size=(40, 30)))
    found = evaluate(32)(image)
    square = torch.from_numpy(evaluate(32).square(picture(5, size=(40, 30)), seed=0, epoch=0, index=0).copy())
    wanted = (square.double() / 255 - torch.tensor(MEAN, dtype=torch.float64)) / torch.tensor(STD, dtype=torch.float64)
    assert found.dtype == torch.float32
    assert found.shape == (3, 32, 32)
    assert torch.allclose(found.double(), wanted.permute(2, 0, 1), atol=1e-5)


def test_squash_keeps_everything() -> None:
    wanted = np.asarray(decode_image(picture(5, size=(100, 50))).resize((32, 32), Image.Resampling.BICUBIC))
    got = evaluate(32, resize="squash").square(picture(5, size=(100, 50)), seed=0, epoch=0, index=0)
    assert np.array_equal(got, wanted)


def test_a_jpeg_read_at_part_size_looks_like_the_whole_one() -> None:
    stream = io.BytesIO()
    Image.effect_noise((900, 700), 80).resize((900, 700)).save(stream, "JPEG", quality=95)
    fast = evaluate(64).square(stream.getvalue(), seed=0, epoch=0, index=0).astype(int)
    slow = np.asarray(evaluate(64)._whole(decode_image(stream.getvalue()))).astype(int)
    assert np.abs(fast - slow).mean() < 4


def batch(count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_variation_belongs_to_the_sample_not_to_its_batch() -> None:
    transform = ImageTransform(16, MEAN, STD, train=True, shift=3, flip=0.5)
    pixels, ids = batch(50), np.arange(100, 150)
    whole = transform.vary(pixels, seed=1, epoch=2, ids=ids)
    order = np.random.default_rng(1).permutation(50)
    assert np.array_equal(transform.vary(pixels[order], seed=1, epoch=2, ids=ids[order]), whole[order])
    assert np.array_equal(transform.vary(pixels[7:8], seed=1, epoch=2, ids=ids[7:8]), whole[7:8])
    assert not np.array_equal(transform.vary(pixels, seed=1, epoch=3, ids=ids), whole)
    assert not np.array_equal(transform.vary(pixels, seed=2, epoch=2, ids=ids), whole)


def test_shifts_cover_their_range_and_repeat_the_edge() -> None:
    transform = ImageTransform(16, MEAN, STD, train=True, shift=2)
    pixels = np.repeat(np.arange(16, dtype=np.uint8)[None, :, None, None], 16, axis=2)  # row number as grey
    pixels = np.repeat(np.repeat(pixels, 3, axis=3), 400, axis=0)
    varied = transform.vary(pixels, seed=0, epoch=0, ids=np.arange(400))
    shifts = varied[:, 8, 0, 0].astype(int) - 8
    assert np.bincount(shifts + 2, minlength=5).min() > 40
    for row, shift in zip(varied[:, :, 5, 1].astype(int), shifts, strict=True):
        assert row.tolist() == np.clip(np.arange(16) + shift, 0, 15).tolist()


def test_flip_has_its_probability_and_is_off_by_default() -> None:
    pixels = batch(1).repeat(1000, axis=0)
    ids = np.arange(1000)
    flipped = ImageTransform(16, MEAN, STD, train=True, shift=0, flip=0.25).vary(pixels, seed=0, epoch=0, ids=ids)
    share = np.mean([np.array_equal(one, pixels[0][:, ::-1]) for one in flipped])
    assert 0.2 < share < 0.3
    plain = ImageTransform(16, MEAN, STD, train=True, shift=0).vary(pixels, seed=0, epoch=0, ids=ids)
    assert np.array_equal(plain, pixels)


RICH = {"shift": 2, "flip": 0.5, "rotate": 15.0, "zoom": 0.3, "colour": 0.4}


def test_turned_and_recoloured_pictures_belong_to_the_sample_not_to_its_batch() -> None:
    transform = ImageTransform(16, MEAN, STD, train=True, **RICH)
    pixels, ids = batch(50), np.arange(100, 150)
    whole = transform.vary(pixels, seed=1, epoch=2, ids=ids)
    assert len({one.tobytes() for one in transform.vary(pixels[:1].repeat(50, axis=0), seed=1, epoch=2, ids=ids)}) == 50
    for rows in (slice(0, 1), slice(7, 12), slice(19, 50)):
        assert np.array_equal(transform.vary(pixels[rows], seed=1, epoch=2, ids=ids[rows]), whole[rows])
    assert not np.array_equal(transform.vary(pixels, seed=1, epoch=3, ids=ids), whole)


def disc(radius: float, size: int = 33) -> np.ndarray:
    """A black disc in the middle of a white picture."""
    axis = np.arange(size) - size // 2
    inside = axis[:, None] ** 2 + axis**2 <= radius**2
    return np.repeat(np.where(inside, 0, 255).astype(np.uint8)[None, :, :, None], 3, axis=3)


def test_zoom_stays_within_its_factor_both_ways() -> None:
    transform = ImageTransform(33, MEAN, STD, train=True, shift=0, zoom=0.5)
    varied = transform.vary(disc(8).repeat(300, axis=0), seed=0, epoch=0, ids=np.arange(300))
    growth = np.sqrt((255 - varied[..., 0].astype(float)).sum((1, 2)) / (255 - disc(8)[..., 0].astype(float)).sum())
    assert 1 / 1.55 < growth.min() < 0.75
    assert 1.35 < growth.max() < 1.55
    assert np.median(growth) == pytest.approx(1, abs=0.06)


def test_rotation_is_about_the_centre_and_repeats_the_edge() -> None:
    transform = ImageTransform(33, MEAN, STD, train=True, shift=0, rotate=30)
    turned = transform.vary(disc(10).repeat(50, axis=0), seed=0, epoch=0, ids=np.arange(50)).astype(int)
    assert np.abs(turned - disc(10)).mean() < 6, "a disc in the middle looks the same"
    half = np.zeros((1, 33, 33, 3), np.uint8)
    half[:, :16] = 200
    turned = transform.vary(half.repeat(50, axis=0), seed=0, epoch=0, ids=np.arange(50))
    assert (turned[:, 0, 16] == 200).all()
    assert (turned[:, -1, 16] == 0).all()
    assert (turned[:, 16, 0] != turned[:, 16, -1]).any()


def test_colours_change_and_a_grey_picture_stays_grey() -> None:
    transform = ImageTransform(16, MEAN, STD, train=True, shift=0, colour=0.5)
    ids = np.arange(200)
    red = np.zeros((200, 16, 16, 3), np.uint8)
    red[:, :8, :, 0] = 180
    varied = transform.vary(red, seed=0, epoch=0, ids=ids)
    assert np.unique(varied[:, 0, 0], axis=0).shape[0] > 150
    grey = np.repeat(batch(200)[..., :1], 3, axis=3)
    varied = transform.vary(grey, seed=0, epoch=0, ids=ids).astype(int)
    assert np.ptp(varied, axis=3).max() <= 1, "but for rounding"


def test_evaluation_varies_nothing() -> None:
    assert np.array_equal(evaluate(16, **RICH).vary(batch(5), seed=0, epoch=0, ids=np.arange(5)), batch(5))


def test_random_crops_keep_their_share_of_the_area() -> None:
    """On a picture whose colours are its coordinates, the crop can be read off the corners."""
    side = 200
    ramp = np.arange(side, dtype=np.uint8)
    coordinates = np.stack(
        [np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), np.zeros((side, side), np.uint8)]
    )
    stream = io.BytesIO()
    Image.fromarray(coordinates.transpose(1, 2, 0)).save(stream, "PNG")
    transform = ImageTransform(64, MEAN, STD, train=True, crop_scale=(0.3, 0.6))
    assert not transform.is_cacheable
    shares, starts = [], []
    for index in range(200):
        square = transform.square(stream.getvalue(), seed=0, epoch=0, index=index).astype(float)
        width, height = (
            (square[32, -1, 0] - square[32, 0, 0]) / 63 * 64,
            (square[-1, 32, 1] - square[0, 32, 1]) / 63 * 64,
        )
        shares.append(width * height / side**2)
        starts.append(square[32, 0, 0])
        assert 0.7 < width / height < 1.42
    assert 0.28 < min(shares) < 0.35
    assert 0.55 < max(shares) < 0.63
    assert np.ptp(starts) > 50
    again = transform.square(stream.getvalue(), seed=0, epoch=0, index=5)
    assert np.array_equal(again, transform.square(stream.getvalue(), seed=0, epoch=0, index=5))
    assert not np.array_equal(again, transform.square(stream.getvalue(), seed=0, epoch=1, index=5))


def test_normalise_is_the_definition() -> None:
    pixels = torch.from_numpy(batch(3)).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    assert torch.allclose(normalise(pixels, MEAN, STD).double(), (pixels.double() / 255 - mean) / std, atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"resize": "stretch"},
        {"crop_scale": (0.5, 1.5)},
        {"flip": 2.0},
        {"shift": -1},
        {"shift": 16},
        {"rotate": 200},
        {"zoom": -0.1},
        {"colour": 1.5},
    ],
)
def test_impossible_settings_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ImageTransform(**{"size": 16, "mean": MEAN, "std": STD, "train": True, **options})


def test_tags_are_drawn_by_sample_and_epoch() -> None:
    ids, count = np.arange(2000), 2000
    tags = [["a", "b", "c", "d"]] * count
    varied = with_tags(["x"] * count, tags, (1, 3), seed=0, epoch=0, ids=ids)
    words = [caption.split(", ") for caption in varied]
    assert all(first == "x" and len(set(rest)) == len(rest) and set(rest) <= set("abcd") for first, *rest in words)
    lengths = np.bincount([len(one) - 1 for one in words])
    assert lengths[0] == 0
    assert lengths[1:].min() > 580
    assert len(lengths) == 4
    firsts = np.unique([one[1] for one in words], return_counts=True)[1]
    assert firsts.min() > 400
    assert with_tags(["x"], tags[:1], (1, 3), seed=0, epoch=0, ids=ids[7:8]) == varied[7:8]
    assert with_tags(["x"] * count, tags, (1, 3), seed=0, epoch=1, ids=ids) != varied


def test_too_few_tags_are_all_taken_and_none_is_none() -> None:
    ids = np.arange(2)
    assert with_tags(["x", "y"], [["a"], []], (3, 3), seed=0, epoch=0, ids=ids) == ["x, a", "y"]
    assert with_tags(["x", "y"], [["a"], ["b"]], (0, 0), seed=0, epoch=0, ids=ids) == ["x", "y"]
