# SPDX-License-Identifier: Apache-2.0
"""Walk the headers of a tar file and say where its regular members lie, without reading or unpacking them.

Python's tarfile would do, at about six times the cost per member and with no way to go on after damage. The format:
POSIX ustar and pax, and GNU's long names (IEEE 1003.1-2017, "pax"; GNU tar manual, "Basic Tar Format").
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
_MAX_EXTENDED_HEADER = 1 << 20  # a pax or long-name record; real ones are a few hundred bytes
_REGULAR = frozenset(b"0\x007")
_IGNORED_TYPES = {ord("1"): "link", ord("2"): "link", ord("3"): "device", ord("4"): "device", ord("6"): "device"}
_WITHOUT_DATA = frozenset(b"123456")


@dataclass(frozen=True)
class Member:
    """A regular file inside a tar: its bytes are [offset, offset + size) of the tar file."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Damage:
    """Something that is not a readable regular file. `reason` is for counting, `where` for naming."""

    reason: str
    where: str


def scan_tar(path: Path) -> Iterator[Member | Damage]:
    """Yield each regular member in file order, and a Damage for what is passed over or ends the walk.

    Never raises for what the file holds. OSError when it cannot be opened or read.
    """
    with path.open("rb") as stream:
        total = os.fstat(stream.fileno()).st_size
        position, overrides = 0, _Overrides()
        while True:
            if position + BLOCK > total:
                # a whole tar ends with blocks of zeros: this one was cut, if perhaps between two members
                yield Damage("truncated tar" if total else "empty tar", f"byte {position}")
                return
            stream.seek(position)
            block = stream.read(BLOCK)
            if not block.strip(b"\0"):
                return  # the end-of-archive mark
            size = _checked_size(block)
            if size is None:
                yield Damage(_what_instead(block, position), f"byte {position}")
                return
            kind = block[156]
            if kind in b"xgLKS":
                body = _extended_header(stream, position + BLOCK, size, total) if kind != ord("S") else None
                if body is None:
                    yield Damage("damaged tar header", f"byte {position}")
                    return
                overrides.read(kind, body)
            else:
                name, size = overrides.apply(_name(block), size)
                if kind in _WITHOUT_DATA:
                    size = 0  # the field may hold the size of what a link points to; no bytes follow
                if position + BLOCK + size > total:
                    yield Damage("truncated tar", name)
                    return
                if kind in _REGULAR and not name.endswith("/") and not overrides.sparse:
                    yield Member(name, position + BLOCK, size)
                elif kind in _IGNORED_TYPES or overrides.sparse:
                    yield Damage(f"{_IGNORED_TYPES.get(kind, 'sparse file')} in tar", name)
                overrides = _Overrides()
            position += BLOCK + -(-size // BLOCK) * BLOCK


class _Overrides:
    """What pax and GNU records say about the member that follows them."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.size: int | None = None
        self.sparse = False

    def read(self, kind: int, body: bytes) -> None:
        """Take in one record; a malformed one changes nothing."""
        if kind == ord("L"):
            self.name = _text(body)
        elif kind == ord("x"):
            for key, value in _pax_records(body):
                if key == b"path":
                    self.name = _text(value)
                elif key == b"size" and value.isdigit():
                    self.size = int(value)
                elif key.startswith(b"GNU.sparse"):
                    self.sparse = True

    def apply(self, name: str, size: int) -> tuple[str, int]:
        """The member's true name and size."""
        return self.name if self.name is not None else name, self.size if self.size is not None else size


def _pax_records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The "length key=value newline" records of a pax header, up to the first malformed one."""
    while body:
        digits, _, _ = body.partition(b" ")
        if not digits.isdigit() or not len(digits) + 2 <= int(digits) <= len(body):
            return
        record, body = body[len(digits) + 1 : int(digits) - 1], body[int(digits) :]
        key, equals, value = record.partition(b"=")
        if equals:
            yield key, value


def _extended_header(stream: BinaryIO, offset: int, size: int, total: int) -> bytes | None:
    if size > _MAX_EXTENDED_HEADER or offset + size > total:
        return None
    stream.seek(offset)
    return stream.read(size)


def _checked_size(block: bytes) -> int | None:
    """The member's size from a header whose checksum is right, else None."""
    wanted = _number(block[148:156])
    if wanted is None or sum(block) - sum(block[148:156]) + 8 * ord(" ") != wanted:
        return None
    return _number(block[124:136])


def _number(digits: bytes) -> int | None:
    """An octal field, or GNU's base-256 form, which sets the top bit; None for anything else and for negatives."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:], "big")
    text = digits.partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    return int(text, 8) if not text.translate(None, b"01234567") else None


def _name(block: bytes) -> str:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _what_instead(block: bytes, position: int) -> str:
    if position == 0 and block[:2] == b"\x1f\x8b":
        return "compressed tar"
    return "damaged tar header"
