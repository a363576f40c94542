# SPDX-License-Identifier: Apache-2.0
"""Facts about where numbers were made: the processor, and the commit of a source checkout."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path


def processor() -> tuple[str, frozenset[str]]:
    """Name and feature flags of the processor; flags are known on Linux only."""
    fields: dict[str, str] = {}
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, frozenset((fields.get("flags") or fields.get("features") or "").split())


def commit() -> str | None:
    """The git commit that clipkit runs from, with "+changes" if files differ from it; None for an installed wheel."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+changes" if changes else head
