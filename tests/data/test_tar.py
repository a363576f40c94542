# SPDX-License-Identifier: Apache-2.0
"""Walking tar headers: agrees with Python's tarfile, and survives everything that is not a healthy tar."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipkit.data.tarscan import Damage, Member, scan_tar
from tests.data.samples import write_tar

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=150).filter(
    lambda name: not name.endswith("/") and name.strip("/")
)
MEMBERS = st.lists(st.tuples(NAMES, st.binary(max_size=1100)), max_size=6)
FIXTURE_IS_FINE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FIXTURE_IS_FINE
@given(members=MEMBERS, form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_agrees_with_tarfile(tmp_path: Path, members: list[tuple[str, bytes]], form: int) -> None:
    path = write_tar(tmp_path / "a.tar", members, form=form)
    found = list(scan_tar(path))
    content = path.read_bytes()
    assert all(isinstance(item, Member) for item in found)
    got = [(item.name, content[item.offset : item.offset + item.size]) for item in found if isinstance(item, Member)]
    assert got == members


def test_reads_the_prefix_of_ustar_names(tmp_path: Path) -> None:
    name = "folder/" * 20 + "x" * 80
    path = write_tar(tmp_path / "a.tar", [(name, b"abc")], form=tarfile.USTAR_FORMAT)
    assert [item.name for item in scan_tar(path) if isinstance(item, Member)] == [name]


@FIXTURE_IS_FINE
@given(members=MEMBERS, data=st.data())
def test_a_cut_tar_keeps_what_lies_before_the_cut(tmp_path: Path, members: list, data: st.DataObject) -> None:
    path = write_tar(tmp_path / "a.tar", members)
    whole = [item for item in scan_tar(path) if isinstance(item, Member)]
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    kept = [item for item in scan_tar(path) if isinstance(item, Member)]
    assert kept == [item for item in whole if item.offset + item.size <= cut and item in kept]
    assert len(kept) >= len([item for item in whole if -(-(item.offset + item.size) // 512) * 512 <= cut])


@FIXTURE_IS_FINE
@given(members=MEMBERS, where=st.integers(0, 10**6), byte=st.integers(1, 255))
def test_a_flipped_byte_never_raises_nor_points_outside(tmp_path: Path, members: list, where: int, byte: int) -> None:
    path = write_tar(tmp_path / "a.tar", members)
    content = bytearray(path.read_bytes())
    content[where % len(content)] ^= byte
    path.write_bytes(content)
    for item in scan_tar(path):
        if isinstance(item, Member):
            assert 0 <= item.offset <= item.offset + item.size <= len(content)


@FIXTURE_IS_FINE
@given(content=st.binary(max_size=2000))
def test_noise_never_raises(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    assert not [item for item in scan_tar(tmp_path / "a.tar") if isinstance(item, Member)]


def test_links_devices_and_folders_are_not_members(tmp_path: Path) -> None:
    members: list[tuple[str | tarfile.TarInfo, bytes]] = []
    for name, kind in (
        ("link.png", tarfile.SYMTYPE),
        ("hard.png", tarfile.LNKTYPE),
        ("null.png", tarfile.CHRTYPE),
        ("disk.png", tarfile.BLKTYPE),
        ("pipe.png", tarfile.FIFOTYPE),
        ("folder.png", tarfile.DIRTYPE),
    ):
        header = tarfile.TarInfo(name)
        header.type, header.linkname = kind, "/etc/passwd"
        members.append((header, b""))
    path = write_tar(tmp_path / "a.tar", [*members, ("real.png", b"yes")])
    found = list(scan_tar(path))
    assert [item.name for item in found if isinstance(item, Member)] == ["real.png"]
    reasons = [item.reason for item in found if isinstance(item, Damage)]
    assert reasons == ["link in tar"] * 2 + ["device in tar"] * 3


def test_a_hard_link_with_a_size_has_no_bytes(tmp_path: Path) -> None:
    """Some writers put the size of the linked file into the link's header."""
    link, real = tarfile.TarInfo("hard.png"), tarfile.TarInfo("real.png")
    link.type, link.linkname, link.size = tarfile.LNKTYPE, "real.png", 5000
    real.size = 3
    body = b"yes".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(link.tobuf() + real.tobuf() + body + bytes(1024))
    assert list(scan_tar(tmp_path / "a.tar")) == [Damage("link in tar", "hard.png"), Member("real.png", 1024, 3)]


def test_sparse_files_are_not_members(tmp_path: Path) -> None:
    header = tarfile.TarInfo("holes.png")
    header.pax_headers = {"GNU.sparse.major": "1"}
    path = write_tar(tmp_path / "a.tar", [(header, b"map"), ("real.png", b"yes")])
    assert [item.name for item in scan_tar(path) if isinstance(item, Member)] == ["real.png"]


@pytest.mark.parametrize("size", ["9" * 30, "-5", "x"])
def test_a_lying_pax_size_points_nowhere(tmp_path: Path, size: str) -> None:
    header = tarfile.TarInfo("a.png")
    header.pax_headers = {"size": size}
    path = write_tar(tmp_path / "a.tar", [(header, b"abc")])
    total = path.stat().st_size
    assert all(item.offset + item.size <= total for item in scan_tar(path) if isinstance(item, Member))


def test_a_huge_extended_header_is_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert list(scan_tar(tmp_path / "a.tar")) == [Damage("damaged tar header", "byte 0")]


def test_a_compressed_tar_is_told_apart(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a"), io.BytesIO())
    (tmp_path / "a.tar").write_bytes(gzip.compress(inner.getvalue()) + bytes(1024))
    assert list(scan_tar(tmp_path / "a.tar")) == [Damage("compressed tar", "byte 0")]
