# SPDX-License-Identifier: Apache-2.0
"""Tables of (path, caption): what people really have, and what they get told when it is something else."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from clipkit.data import BrokenSample, open_dataset
from tests.data.samples import picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(picture(number))
    return tmp_path


@pytest.mark.parametrize(
    "header, separator",
    [
        ("filepath\ttitle", "\t"),
        ("path,caption", ","),
        ("caption;path", ";"),
        ("Image|Text", "|"),
        ("id,path,caption", ","),
    ],
)
def test_separators_and_headers_are_recognised(folder: Path, header: str, separator: str) -> None:
    names = [name.lower() for name in header.split(separator)]
    lines = [header]
    for number in range(3):
        row = {"id": str(number), **dict.fromkeys(("filepath", "path", "image"), f"pictures/{number}.png")}
        row.update(dict.fromkeys(("title", "caption", "text"), f"a small picture {number}"))
        lines.append(separator.join(row[name] for name in names))
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    dataset = open_dataset(folder / "t.csv")
    assert [dataset.read(index).caption for index in range(3)] == [f"a small picture {number}" for number in range(3)]
    assert dataset.read(2).image_bytes == picture(2)


def test_quotes_commas_newlines_bom_and_tags(folder: Path) -> None:
    text = '\ufeffpath,caption,tags\npictures/0.png,"a ""red"", round\nthing","fruit, round"\npictures/1.png,b,\n'
    (folder / "t.csv").write_text(text, encoding="utf-8")
    dataset = open_dataset(folder / "t.csv")
    assert dataset.read(0).caption == 'a "red", round\nthing'
    assert list(dataset.read(0).tags) == ["fruit", "round"]
    assert list(dataset.read(1).tags) == []


def test_incomplete_rows_and_missing_pictures_are_counted(folder: Path) -> None:
    rows = ["path,caption", "pictures/0.png,fine", "pictures/1.png,", ",no path", "short", "", "pictures/gone.png,gone"]
    (folder / "t.csv").write_text("\n".join(rows))
    dataset = open_dataset(folder / "t.csv")
    assert len(dataset) == 2
    assert dataset.problems.counts == {"missing path or caption": 3}
    assert dataset.problems.examples["missing path or caption"][0] == "t.csv: line 3"
    with pytest.raises(BrokenSample, match="missing picture") as caught:
        dataset.read(1)
    assert caught.value.key == "pictures/gone.png"


def test_absolute_paths_stay(folder: Path, tmp_path: Path) -> None:
    (folder / "t.tsv").write_text(f"filepath\ttitle\n{folder}/pictures/1.png\tone\n")
    assert open_dataset(folder / "t.tsv").read(0).image_bytes == picture(1)


def test_a_fingerprint_follows_the_rows(folder: Path) -> None:
    prints = set()
    for text in ("path,caption\na.png,a\n", "path,caption\na.png,b\n", "path,caption\nb.png,a\n"):
        (folder / "t.csv").write_text(text)
        prints.add(open_dataset(folder / "t.csv").fingerprint)
    assert len(prints) == 3


def test_it_survives_pickling(folder: Path) -> None:
    (folder / "t.csv").write_text("path,caption\npictures/0.png,zero\n")
    assert pickle.loads(pickle.dumps(open_dataset(folder / "t.csv"))).read(0).caption == "zero"


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "path\nx.png\n", "path,caption\n"])
def test_other_tables_are_refused_with_a_reason(folder: Path, text: str) -> None:
    (folder / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=r"source: got"):
        open_dataset(folder / "t.csv")


def test_no_table_is_file_not_found(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        open_dataset(folder / "none.csv")
