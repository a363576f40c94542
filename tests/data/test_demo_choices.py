# SPDX-License-Identifier: Apache-2.0
"""The split on which the demo's choices are measured: nothing of what it tests is trained on, nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import demo_choices
from clipkit.data import Sample, open_dataset, write_shards
from clipkit.train.config import load_config
from tests.data.samples import picture

STYLES = ("noto", "twemoji", "openmoji")
CONCEPTS = [f"1f6{number:02x}" for number in range(20)]


@pytest.fixture
def emoji(tmp_path: Path) -> Path:
    """A set as `clipkit data emoji` leaves it: twenty concepts, each in three styles."""
    samples = [
        Sample(f"{style}-{concept}", picture(number), f"label {concept}", {"concept": concept, "vendor": style})
        for style in STYLES
        for number, concept in enumerate(CONCEPTS)
    ]
    write_shards(tmp_path / "emoji" / "train", samples)
    (tmp_path / "emoji" / "captions.txt").write_text("".join(f"label {concept}\n" for concept in CONCEPTS))
    return tmp_path / "emoji"


def test_a_style_and_concepts_are_held_out_and_nothing_is_lost(tmp_path: Path, emoji: Path) -> None:
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "00009.tar").write_bytes(b"left over")
    sizes = demo_choices.build_split(emoji, tmp_path / "out")
    assert sizes == {"train": 2 * 17, "style": 17, "concepts": 3 * 3, "concepts held out": 3}
    parts = {name: open_dataset(tmp_path / "out" / name) for name in ("train", "style", "concepts")}
    records = {name: [part.read(number) for number in range(len(part))] for name, part in parts.items()}
    held = {one.metadata["concept"] for one in records["concepts"]}
    assert len(held) == 3
    assert {one.metadata["vendor"] for one in records["concepts"]} == set(STYLES)
    for name, vendors in (("train", {"noto", "openmoji"}), ("style", {"twemoji"})):
        assert {one.metadata["vendor"] for one in records[name]} == vendors
        assert {one.metadata["concept"] for one in records[name]} == set(CONCEPTS) - held
    assert sum(map(len, records.values())) == len(STYLES) * len(CONCEPTS)


def test_every_variation_is_the_recipe_but_for_its_own_settings() -> None:
    recipe = load_config("demo.yaml", demo_choices.settings_of("recipe", 3, Path("x")))
    assert recipe.train.epochs == 3
    for name, settings in demo_choices.VARIATIONS.items():
        config = load_config("demo.yaml", demo_choices.settings_of(name, 3, Path("x")))
        assert (config != recipe) == bool(settings), name
