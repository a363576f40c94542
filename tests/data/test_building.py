# SPDX-License-Identifier: Apache-2.0
"""What builders share: all or nothing, the same bytes every time, and archives that cannot harm."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from clipkit.data.archives import read_members
from clipkit.data.building import BuildOptions, Content, Source, build_set, held_out
from clipkit.data.shardwriter import Sample, write_shards
from tests.data.samples import picture, write_tar

OPTIONS = BuildOptions(image_size=16)


def content() -> Content:
    samples = [Sample(f"k{number}", picture(number), f"caption {number}", {"label": "x"}) for number in range(5)]
    source = Source("a-package", "1.0", "A Work", "An Author", "MIT", "where it is")
    return Content({"train": samples[:3], "test": samples[3:]}, ["caption 0", "caption 1"], [source], {"work": "text"})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_set_has_its_parts(tmp_path: Path) -> None:
    report = build_set("toy", tmp_path / "toy", OPTIONS, content)
    assert report.built
    assert report.splits == {"train": 3, "test": 2}
    found = files(tmp_path / "toy")
    assert set(found) == {
        "train/00000.tar",
        "test/00000.tar",
        "captions.txt",
        "ATTRIBUTION.md",
        "licences/work.txt",
        "dataset.json",
    }
    for word in ("A Work", "An Author", "MIT", "a-package 1.0", "where it is"):
        assert word in found["ATTRIBUTION.md"].decode()
    manifest = json.loads(found["dataset.json"])
    assert manifest["name"] == "toy"
    assert manifest["image_size"] == 16
    assert manifest["sources"][0]["spdx"] == "MIT"


def test_the_same_set_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_set("toy", tmp_path / name, OPTIONS, content)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    with tarfile.open(tmp_path / "one" / "train" / "00000.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:3]] == ["k0.png", "k0.txt", "k0.json"]
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(0, 0, "", 0o644)}


def test_a_complete_set_is_left_alone(tmp_path: Path) -> None:
    build_set("toy", tmp_path / "toy", OPTIONS, content)

    def never() -> Content:
        raise AssertionError("built again")

    assert not build_set("toy", tmp_path / "toy", OPTIONS, never).built
    with pytest.raises(ValueError, match="--force"):
        build_set("toy", tmp_path / "toy", BuildOptions(image_size=32), never)
    with pytest.raises(ValueError, match="--force"):
        build_set("other", tmp_path / "toy", OPTIONS, never)
    assert build_set("other", tmp_path / "toy", BuildOptions(image_size=16, force=True), content).built
    assert json.loads((tmp_path / "toy" / "dataset.json").read_text())["name"] == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_foreign_folder_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(ValueError, match="did not build"):
            build_set("toy", tmp_path / "mine", BuildOptions(force=force), content)
    assert files(tmp_path) == {"mine/thesis.txt": b"years of work"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    assert build_set("toy", tmp_path / "toy", OPTIONS, content).built


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr("clipkit.data.building._attribution", interrupted)
    with pytest.raises(error):
        build_set("toy", tmp_path / "toy", OPTIONS, content)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".toy.building-999999999", tmp_path / f".toy.building-{os.getppid()}"
    for folder in (dead, alive):
        folder.mkdir()
    build_set("toy", tmp_path / "toy", OPTIONS, content)
    assert not dead.exists()
    assert alive.exists()


def test_held_out_names_depend_on_the_seed_alone() -> None:
    names = [f"name {number}" for number in range(1594)]
    first = held_out(names, 0.1, 0)
    assert len(first) == 159
    assert first == held_out(reversed(names), 0.1, 0)
    assert first != held_out(names, 0.1, 1)


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "twice"])
def test_keys_that_readers_would_misread_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="unique name"):
        write_shards(tmp_path, [Sample(name, b"", "") for name in (key, "twice")])


def test_an_image_size_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size"):
        BuildOptions(image_size=4)


def test_members_are_read_not_unpacked(tmp_path: Path) -> None:
    link = tarfile.TarInfo("wanted-link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    names = ["../../wanted", "/wanted", "wanted", "other"]
    write_tar(tmp_path / "a.tgz", [*((name, name.encode()) for name in names), (link, b"")])
    found = dict(read_members(tmp_path / "a.tgz", lambda name: "wanted" in name))
    assert found == {name: name.encode() for name in names[:3]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_archives_too_large_or_damaged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("a", "b"):
            header = tarfile.TarInfo(name)
            header.size = 1 << 20
            tar.addfile(header, io.BytesIO(bytes(1 << 20)))
    everything = str.strip
    with pytest.raises(ValueError, match="larger than allowed"):
        list(read_members(path, lambda name: bool(everything(name)), max_member_bytes=1000))
    with pytest.raises(ValueError, match="larger than allowed"):
        list(read_members(path, lambda name: True, max_total_bytes=3 << 19))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match="delete it"):
        list(read_members(path, lambda name: True))
