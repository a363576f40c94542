# SPDX-License-Identifier: Apache-2.0
"""Progress for a person: one line that redraws itself on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    _TextHandler = logging.StreamHandler[TextIO]
else:
    _TextHandler = logging.StreamHandler  # takes no subscript at run time before Python 3.11

_REDRAW_SECONDS, _LINE_SECONDS = 0.1, 10.0
_BAR_WIDTH = 20


class Progress:
    """Draws on `stream` (default: stderr). Rank 0 owns the only one."""

    def __init__(self, total_steps: int, stream: TextIO | None = None) -> None:
        self._total, self._stream = total_steps, sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._next_draw = 0.0

    def update(self, step: int, *, loss: float, samples_per_second: float, eta_seconds: float) -> None:
        """Show the state after `step` steps, unless the last drawing was a moment ago."""
        now = time.monotonic()
        if now < self._next_draw and step < self._total:
            return
        self._next_draw = now + (_REDRAW_SECONDS if self._live else _LINE_SECONDS)
        speed, left = f"{samples_per_second:,.0f} samples/s", f"ETA {duration(eta_seconds)}"
        facts = f"step {step}/{self._total}  loss {loss:.4f}  {speed}  {left}"
        if not self._live:
            self._stream.write(facts + "\n")
        else:
            filled = _BAR_WIDTH * step // self._total
            line = f"[{'█' * filled}{'·' * (_BAR_WIDTH - filled)}] {facts}"
            self._stream.write("\r\x1b[2K" + line[: shutil.get_terminal_size().columns - 1])
        self._stream.flush()

    def clear(self) -> None:
        """Take the bar away, before other text or at the end."""
        if self._live:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()


class ProgressAwareHandler(_TextHandler):
    """Writes log lines above the bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Clear the current line first, on a terminal."""
        if self.stream.isatty():
            self.stream.write("\r\x1b[2K")
        super().emit(record)


def duration(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
