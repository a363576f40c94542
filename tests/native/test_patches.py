# SPDX-License-Identifier: Apache-2.0
"""Patch dropout: exact counts, uniform without replacement, the same on every backend; the kept pixels."""

import pytest
import torch

from clipkit.engine import patches
from clipkit.engine.torch_backend.patches import philox

pytestmark = pytest.mark.usefixtures("on_host")
BACKENDS = ["cuda", "torch"]

# Known answers of Philox-4x32-10, published with the generator (Random123): counter, key, output.
KNOWN = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def sample(backend, samples, *, keep=98, number=196, seed=1, step=2):
    return patches.sample_patches(samples, patches=number, keep=keep, seed=seed, step=step, backend=backend)


@pytest.mark.parametrize("counter, key, words", KNOWN)
def test_philox_gives_its_known_answers(native, counter, key, words):
    assert native.philox(*counter, key) == words
    assert tuple(int(word) for word in philox(tuple(torch.tensor(word) for word in counter), key)) == words


@pytest.mark.parametrize(
    "number, dropout, kept",
    [(196, 0.5, 98), (256, 0.5, 128), (576, 0.5, 288), (196, 0.75, 49), (256, 0.3, 179), (100, 0.9, 9), (10, 0.9, 1)],
)
def test_counts_are_exact_and_numbers_ascend(number, dropout, kept):
    assert patches.kept_patches(number, dropout) == kept
    chosen = sample("cuda", torch.arange(5), number=number, keep=kept)
    assert chosen.shape == (5, kept)
    assert (chosen.diff(dim=1) > 0).all()
    assert chosen.min() >= 0
    assert chosen.max() < number


@pytest.mark.parametrize("number, keep", [(1, 1), (7, 7), (196, 98), (1024, 3), (1025, 1000), (4096, 17)])
def test_backends_keep_the_same_patches(number, keep):
    samples = torch.tensor([0, 1, 2**40, 400_000_000])
    options = {"number": number, "keep": keep, "seed": 2**63 + 5, "step": 2**32 - 1}
    assert torch.equal(sample("cuda", samples, **options), sample("torch", samples, **options))


def test_a_picture_keeps_its_patches_whatever_batch_it_is_in():
    alone = sample("cuda", torch.tensor([77]))
    assert torch.equal(sample("cuda", torch.tensor([5, 77, 6]))[1:2], alone)
    for change in ({"step": 3}, {"seed": 2}):
        assert not torch.equal(sample("cuda", torch.tensor([77]), **change), alone)
    assert not torch.equal(sample("cuda", torch.tensor([77 + 2**32])), alone)


def test_every_patch_and_every_pair_is_kept_equally_often():
    """Inclusion k/N and pair inclusion k(k-1)/(N(N-1)) over 20,000 pictures, within five standard deviations."""
    number, keep, pictures = 12, 5, 20_000
    chosen = sample("torch", torch.arange(pictures), number=number, keep=keep)
    kept = torch.zeros(pictures, number).scatter_(1, chosen, 1.0)
    pairs = kept.T @ kept / pictures
    for found, wanted in (
        (pairs.diagonal(), keep / number),
        (pairs[~torch.eye(number, dtype=torch.bool)], keep * (keep - 1) / (number * (number - 1))),
    ):
        assert (found - wanted).abs().max() < 5 * (wanted * (1 - wanted) / pictures) ** 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("channels, grid, size", [(3, 4, 8), (1, 1, 1), (3, 3, 14), (2, 5, 3)])
def test_gathered_pixels_are_the_patches_pixels(channels, grid, size, dtype, backend):
    pixels = torch.randint(0, 255, (3, channels, grid * size, grid * size)).to(dtype)
    chosen = patches.sample_patches(torch.arange(3), patches=grid**2, keep=(grid**2 + 1) // 2, seed=0, step=0)
    found = patches.gather_patches(pixels, chosen, size=size, backend=backend)
    for picture in range(3):
        for place, patch in enumerate(chosen[picture].tolist()):
            row, column = patch // grid * size, patch % grid * size
            wanted = pixels[picture, :, row : row + size, column : column + size].flatten()
            assert torch.equal(found[picture, place], wanted)


def test_a_patch_outside_the_picture_is_zeros():
    found = patches.gather_patches(torch.ones(1, 3, 4, 4), torch.tensor([[0, 4, -1]]), size=2, backend="cuda")
    assert found.sum(dim=2).tolist() == [[12.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"samples": torch.zeros(2)}, "samples: got torch.float32"),
        ({"patches": 4097}, "patches: got 4097; want a number from 1 to 4096"),
        ({"keep": 17}, "keep: got 17; want a number from 1 to 16"),
        ({"keep": 0}, "keep: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"step": 2**32}, "step: got 4294967296"),
    ],
)
def test_bad_arguments_of_sampling_are_refused(change, complaint):
    arguments = {"samples": torch.zeros(2, dtype=torch.int64), "patches": 16, "keep": 8, "seed": 0, "step": 0}
    with pytest.raises((TypeError, ValueError), match=complaint):
        patches.sample_patches(**{**arguments, **change})


@pytest.mark.parametrize(
    "pixels, chosen, complaint",
    [
        (torch.zeros(2, 3, 8, 4), torch.zeros(2, 1, dtype=torch.int64), "pixels: got shape"),
        (torch.zeros(2, 3, 9, 9), torch.zeros(2, 1, dtype=torch.int64), "a multiple of 4"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3, 1, dtype=torch.int64), "chosen: got shape"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, dtype=torch.int32), "chosen: got torch.int32"),
        (torch.zeros(2, 8, 8, 3).permute(0, 3, 1, 2), torch.zeros(2, 1, dtype=torch.int64), "contiguous"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.complex64), torch.zeros(2, 1, dtype=torch.int64), "1, 2 or 4"),
    ],
)
def test_bad_arguments_of_gathering_are_refused(pixels, chosen, complaint):
    with pytest.raises((TypeError, ValueError), match=complaint):
        patches.gather_patches(pixels, chosen, size=4, backend="cuda")
