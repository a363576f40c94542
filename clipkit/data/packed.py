# SPDX-License-Identifier: Apache-2.0
"""Many strings in two arrays: no Python object each, and loadable without pickles."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class PackedStrings:
    """An immutable list of strings: their bytes end to end, and where each one ends."""

    def __init__(self, blob: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def pack(cls, strings: Iterable[str]) -> PackedStrings:
        """Pack `strings`; names that are not valid UTF-8 survive the round trip (surrogateescape)."""
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return self.blob[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")
