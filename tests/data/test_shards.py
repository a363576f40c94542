# SPDX-License-Identifier: Apache-2.0
"""Shards: dense ids, an index that never lies, and damage that costs only what it hit."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clipkit.cli import main
from clipkit.data import BrokenSample, Dataset, open_dataset
from clipkit.data.index import SIDECAR_FOLDER, build_index
from tests.data.samples import make_set, picture, write_tar


def captions(dataset: Dataset) -> list[str]:
    return [dataset.read(index).caption for index in range(len(dataset))]


def test_ids_run_densely_through_the_shards(tmp_path: Path) -> None:
    dataset = open_dataset(make_set(tmp_path, 20))
    assert len(dataset) == 20
    for index in range(20):
        record = dataset.read(index)
        assert (record.id, record.key, record.caption) == (index, f"s{index:04d}", f"caption {index}")
        assert record.image_bytes == picture(index)
        assert record.metadata["number"] == index
        assert list(record.tags) == [f"tag{index}{letter}" for letter in "abc"]


@pytest.mark.parametrize("index", [-1, 20])
def test_other_ids_are_an_index_error(tmp_path: Path, index: int) -> None:
    with pytest.raises(IndexError):
        open_dataset(make_set(tmp_path, 20)).read(index)


def test_img2dataset_shards_load(tmp_path: Path) -> None:
    """jpg, txt and json per sample, keys of nine digits, a caption also in the json, a parquet beside the tar."""
    members: list = []
    for number in range(3):
        key = f"00000{number:04d}"
        metadata = {"caption": f"web {number}", "url": "u", "key": key, "status": "success", "width": 16}
        members += [(f"{key}.jpg", picture(number, form="JPEG")), (f"{key}.txt", f"web {number}".encode())]
        members += [(f"{key}.json", json.dumps(metadata).encode())]
    write_tar(tmp_path / "00000.tar", members)
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "00000_stats.json").write_text("{}")
    dataset = open_dataset(tmp_path)
    assert captions(dataset) == ["web 0", "web 1", "web 2"]
    assert dataset.read(1).metadata["url"] == "u"


def test_extensions_keys_and_order_of_members_are_free(tmp_path: Path) -> None:
    members = [
        ("x/a.JPG", picture(1, form="JPEG")),
        ("y/a.webp", picture(2, form="WEBP")),
        ("x/a.txt", b"  first \n"),
        ("c.seg.png", picture(3)),
        ("c.json", b'{"caption": "from json"}'),
        ("y/a.txt", "zw\u00f6lf".encode()),
    ]
    dataset = open_dataset(write_tar(tmp_path / "a.tar", members))
    assert captions(dataset) == ["first", "zw\u00f6lf", "from json"]
    assert [dataset.read(index).key for index in range(3)] == ["x/a", "y/a", "c"]


def test_patterns_name_shards(tmp_path: Path) -> None:
    make_set(tmp_path / "a", 20)
    make_set(tmp_path / "b", 20)
    assert len(open_dataset(tmp_path / "a" / "{00000..00001}.tar")) == 14
    assert len(open_dataset(f"{tmp_path}/{{a,b}}/0000{{0..2}}.tar")) == 40
    assert len(open_dataset(f"{tmp_path}/*/00002.tar")) == 12
    with pytest.raises(FileNotFoundError, match="00003"):
        open_dataset(tmp_path / "a" / "{00000..00003}.tar")
    with pytest.raises(FileNotFoundError, match="folders: a, b"):
        open_dataset(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_dataset(tmp_path / "*.nothing")


def test_what_is_no_sample_is_counted_by_reason(tmp_path: Path) -> None:
    link = tarfile.TarInfo("l.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members: list = [("a.png", picture(0)), ("b.txt", b"b"), ("c.png", picture(0)), ("c.txt", b"c"), (link, b"")]
    dataset = open_dataset(write_tar(tmp_path / "a.tar", members))
    assert captions(dataset) == ["c"]
    assert dataset.problems.counts == {"missing caption": 1, "missing picture": 1, "link in tar": 1}
    assert dataset.problems.examples["missing picture"] == ["a.tar: b"]


def test_a_broken_shard_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_set(tmp_path, 21)
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "00000.tar").write_bytes(b"noise" * 1000)
    (tmp_path / "00003.tar").mkdir()
    os.mkfifo(tmp_path / "00005.tar")
    (tmp_path / "00004.tar").write_bytes(b"")
    dataset = open_dataset(tmp_path)
    found = captions(dataset)
    assert found[-7:] == [f"caption {number}" for number in range(14, 21)]
    assert 1 <= len(found) - 7 < 7
    counts = dataset.problems.counts
    assert {reason: counts[reason] for reason in ("damaged tar header", "truncated tar", "unreadable shard")} == {
        "damaged tar header": 1,
        "truncated tar": 1,
        "unreadable shard": 2,
    }
    assert "unreadable shard" in caplog.text


def test_nothing_usable_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"noise" * 1000)
    with pytest.raises(ValueError, match="damaged tar header"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["../../evil", "/abs/evil", "a\\evil", "a/../../evil", "e\nvil\x1b[31m"])
def test_a_hostile_name_writes_nothing_anywhere(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "deep" / "down"
    inside.mkdir(parents=True)
    write_tar(inside / "a.tar", [(f"{name}.png", picture(0)), (f"{name}.txt", b"evil"), (f"{name}2.png", b"")])
    dataset = open_dataset(inside)
    assert captions(dataset) == ["evil"]
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"deep/down/a.tar", f"deep/down/{SIDECAR_FOLDER}/a.tar.npz"}
    assert "\x1b" not in str(dataset.problems.examples)
    assert "\n" not in str(BrokenSample("x", "y", dataset.read(0).key))
    assert "\n" not in dataset.problems.examples["missing caption"][0]


def test_bad_text_and_json_are_broken_samples(tmp_path: Path) -> None:
    members = []
    for key, text, metadata in (
        ("a", b" \n", b"{}"),
        ("b", b"fine", b"{not json"),
        ("c", b"fine", b"[" * 100_000),
        ("d", b"fine", b"[1]"),
        ("e", b"\xff\xfe", b'{"tags": "not a list"}'),
        ("f", b"x" * (1 << 21), b"{}"),
    ):
        members += [(f"{key}.png", picture(0)), (f"{key}.txt", text), (f"{key}.json", metadata)]
    dataset = open_dataset(write_tar(tmp_path / "a.tar", members))
    wanted = ["missing caption", "damaged json", "damaged json", "damaged json", "", "too many bytes"]
    for index, reason in enumerate(wanted):
        if not reason:
            assert dataset.read(index).caption
            continue
        with pytest.raises(BrokenSample) as caught:
            dataset.read(index)
        assert (caught.value.reason, caught.value.shard, caught.value.key) == (reason, "a.tar", "abcdef"[index])


def test_a_changed_shard_is_indexed_anew(tmp_path: Path) -> None:
    before = open_dataset(make_set(tmp_path, 5))
    sidecar = tmp_path / SIDECAR_FOLDER / "00000.tar.npz"
    first = sidecar.read_bytes()
    assert open_dataset(tmp_path).fingerprint == before.fingerprint
    assert sidecar.read_bytes() == first
    make_set(tmp_path, 6)
    after = open_dataset(tmp_path)
    assert len(after) == 6
    assert after.fingerprint != before.fingerprint
    # same size, other content: only the time tells
    shard = tmp_path / "00000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"caption 3", b"caption X"))
    os.utime(shard, ns=(1, 1))
    assert open_dataset(tmp_path).read(3).caption == "caption X"


def test_a_shard_that_changes_under_a_reader_is_a_broken_sample(tmp_path: Path) -> None:
    dataset = open_dataset(make_set(tmp_path, 14))
    (tmp_path / "00001.tar").unlink()
    with pytest.raises(BrokenSample, match="unreadable shard"):
        dataset.read(10)
    make_set(tmp_path, 9)
    with pytest.raises(BrokenSample, match="changed"):
        dataset.read(7)
    assert dataset.read(0).caption == "caption 0"
    os.truncate(tmp_path / "00000.tar", 100)
    with pytest.raises(BrokenSample, match="truncated tar"):
        dataset.read(1)


@pytest.mark.parametrize("content", [b"", b"noise", b"PK\x03\x04" + b"x" * 100])
def test_a_damaged_sidecar_is_replaced(tmp_path: Path, content: bytes) -> None:
    open_dataset(make_set(tmp_path, 5))
    sidecar = tmp_path / SIDECAR_FOLDER / "00000.tar.npz"
    sidecar.write_bytes(content)
    assert captions(open_dataset(tmp_path)) == [f"caption {number}" for number in range(5)]
    assert len(sidecar.read_bytes()) > 500


def test_a_sidecar_with_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    open_dataset(make_set(tmp_path, 5))
    sidecar = tmp_path / SIDECAR_FOLDER / "00000.tar.npz"
    with np.load(sidecar) as arrays:
        parts = dict(arrays)
    parts["spans"] = np.array([Exploding()], dtype=object)
    np.savez(sidecar, **parts)
    assert len(open_dataset(tmp_path)) == 5
    assert not Exploding.went_off


class Exploding:
    went_off = False

    def __reduce__(self) -> tuple:
        return (_explode, ())


def _explode() -> None:
    Exploding.went_off = True


def test_a_folder_that_cannot_be_written_is_indexed_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    make_set(tmp_path / "data", 5)
    (tmp_path / "data" / SIDECAR_FOLDER).write_text("a file where the folder would be")
    assert len(open_dataset(tmp_path / "data")) == 5
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "data" / SIDECAR_FOLDER))  # nowhere at all
    assert len(open_dataset(tmp_path / "data")) == 5


def test_no_half_written_sidecar_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_set(tmp_path, 5)

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(np, "savez", full_disk)
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    assert len(open_dataset(tmp_path)) == 5
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".tar"]


def test_threads_may_read_one_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.data.shards._OPEN_FILES", 2)
    monkeypatch.setattr("clipkit.data.shards._HELD_INDEXES", 2)
    dataset = open_dataset(make_set(tmp_path, 60, shard_size=5))
    wanted = np.random.default_rng(0).integers(0, 60, 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda index: dataset.read(index).id, wanted)) == wanted


def test_a_pickled_dataset_reads_the_same(tmp_path: Path) -> None:
    dataset = open_dataset(make_set(tmp_path, 20))
    dataset.read(3)
    copy = pickle.loads(pickle.dumps(dataset))
    assert captions(copy) == captions(dataset)


def test_the_command_indexes_many_shards_in_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("clipkit.cli.index._MANY_SHARDS", 3)
    make_set(tmp_path, 20, broken=[4])
    (tmp_path / "00009.tar").write_bytes(b"noise" * 1000)
    assert main(["index", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "20 samples" in said
    assert "damaged tar header: 1" in said
    assert len(list((tmp_path / SIDECAR_FOLDER).iterdir())) == 4
    assert main(["index", str(tmp_path), "--check"]) == 1
    said = capsys.readouterr().out
    assert "19 samples decode" in said
    assert "s0004: undecodable picture" in said
    assert main(["index", str(tmp_path / "nothing")]) == 2


def test_an_index_takes_one_pass_over_the_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not read: a hundred times larger ones give the same number of bytes read."""
    read = []
    for side in (16, 400):
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8).tobytes()
        members: list = []
        for number in range(50):
            members += [(f"{number}.png", noise), (f"{number}.txt", b"x")]
        path = write_tar(tmp_path / f"{side}.tar", members)
        before = _bytes_read()
        assert len(build_index(path)) == 50
        read.append(_bytes_read() - before)
    assert read[1] < 2.5 * read[0]


def _bytes_read() -> int:
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("no /proc/self/io here")
    return int(dict(line.split(": ") for line in counters.read_text().splitlines())["rchar"])
