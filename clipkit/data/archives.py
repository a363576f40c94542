# SPDX-License-Identifier: Apache-2.0
"""Read chosen members of a downloaded archive into memory, never onto the disk.

Nothing is unpacked into a folder, so a hostile member name has nowhere to go: a name is only ever compared with the
names that the caller wants. Links, devices and directories are passed over; sizes are bounded before a byte is read.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

MAX_MEMBER_BYTES = 256 << 20
MAX_TOTAL_BYTES = 2 << 30


def read_members(
    archive: Path | IO[bytes],
    wanted: Callable[[str], bool],
    *,
    max_member_bytes: int = MAX_MEMBER_BYTES,
    max_total_bytes: int = MAX_TOTAL_BYTES,
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the regular members that `wanted(name)` accepts, in the archive's order.

    `archive` is a tar file, compressed or not, or a stream of one. Raises ValueError for a member or a sum of
    members above its limit (a decompression bomb), and for an archive that cannot be read.
    """
    label = archive.name if isinstance(archive, Path) else "archive stream"
    total = 0
    try:
        with _open(archive) as tar:
            for member in tar:
                if not member.isreg() or not wanted(member.name):
                    continue
                total += member.size
                if member.size > max_member_bytes or total > max_total_bytes:
                    raise ValueError(
                        f"{label}: {member.name!r} is larger than allowed "
                        f"({member.size} bytes; limits {max_member_bytes} each, {max_total_bytes} together)"
                    )
                stream = tar.extractfile(member)
                assert stream is not None  # regular members always have a stream
                yield member.name, stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{label}: cannot be read as an archive ({error}); delete it and run again") from error


def _open(archive: Path | IO[bytes]) -> tarfile.TarFile:
    if isinstance(archive, Path):
        return tarfile.open(archive, mode="r|*")
    return tarfile.open(fileobj=archive, mode="r|")
