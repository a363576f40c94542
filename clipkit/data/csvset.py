# SPDX-License-Identifier: Apache-2.0
"""A dataset over a table of (path, caption) rows: comma, tab, semicolon or bar between them, a header above."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

from clipkit.data.packed import PackedStrings
from clipkit.data.records import BrokenSample, Problems, Record
from clipkit.data.shards import MAX_PICTURE_BYTES
from clipkit.errors import value_error

PATH_COLUMNS = ("path", "filepath", "file", "filename", "image", "image_path")
CAPTION_COLUMNS = ("caption", "title", "text", "sentence")
_SEPARATORS = "\t,;|"


class CsvDataset:
    """Rows of `table` as samples, ids in row order; a relative path counts from the table's folder.

    A row without a path or a caption is left out and counted; a missing picture is found when it is read.
    """

    def __init__(self, table: Path, *, tags_key: str = "tags") -> None:
        self.name = str(table)
        self.problems = Problems()
        self._folder = table.parent
        paths, captions, tags = [], [], []
        with table.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            rows = csv.reader(stream, delimiter=_separator(stream.readline(), table))
            stream.seek(0)
            header = [name.strip().lower() for name in next(rows, [])]
            path_at, caption_at = (_column(header, names, table) for names in (PATH_COLUMNS, CAPTION_COLUMNS))
            tags_at = header.index(tags_key) if tags_key in header else None
            for row in rows:
                if max(path_at, caption_at) >= len(row) or not row[path_at].strip() or not row[caption_at].strip():
                    if row:
                        self.problems.add("missing path or caption", f"{table.name}: line {rows.line_num}")
                    continue
                paths.append(row[path_at].strip())
                captions.append(row[caption_at].strip())
                tags.append(row[tags_at] if tags_at is not None and tags_at < len(row) else "")
        self._paths, self._captions, self._tags = map(PackedStrings.pack, (paths, captions, tags))
        digest = hashlib.sha256(self._paths.blob.tobytes() + self._paths.ends.tobytes())
        digest.update(self._captions.blob.tobytes() + self._captions.ends.tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> Record:
        """The sample with this id; IndexError outside 0 to len - 1, BrokenSample where it cannot be used."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample id {index} of {len(self)}")
        key = self._paths[index]
        path = self._folder / key
        try:
            with path.open("rb") as stream:
                image = stream.read(MAX_PICTURE_BYTES + 1)
        except FileNotFoundError as error:
            raise BrokenSample("missing picture", self.name, key) from error
        except (OSError, ValueError) as error:
            raise BrokenSample("unreadable picture", self.name, key) from error
        if len(image) > MAX_PICTURE_BYTES:
            raise BrokenSample("too many bytes", self.name, key)
        tags = [tag.strip() for tag in self._tags[index].split(",") if tag.strip()]
        return Record(index, key, image, self._captions[index], {}, tags, self.name)


def _separator(header: str, table: Path) -> str:
    """The separator that splits the header into names that we know; a table of open_clip's has tabs."""
    for separator in _SEPARATORS:
        names = {name.strip(' "\r\n').lower() for name in header.split(separator)}
        if names & set(PATH_COLUMNS) and names & set(CAPTION_COLUMNS):
            return separator
    raise value_error(
        "source",
        got=f"{table}, whose first line is {header.strip()[:80]!r}",
        want=f"a header with a column of {PATH_COLUMNS} and one of {CAPTION_COLUMNS}",
        fix="name the columns path and caption",
    )


def _column(header: list[str], names: tuple[str, ...], table: Path) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    raise value_error("source", got=f"{table} with columns {header}", want=f"one of {names}", fix="rename a column")
