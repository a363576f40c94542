# SPDX-License-Identifier: Apache-2.0
"""What a run was made of: configuration, machine, command, and the makers of its pictures."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from clipkit.report.page import facts


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none or it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def environment(recorded: Mapping[str, Any]) -> str:
    """Everything that environment.json says, nested names joined; the command has its own place."""
    return facts([(term, value) for term, value in _flat(recorded) if term not in ("command", "argv")])


def command(recorded: Mapping[str, Any]) -> str:
    """The exact command, as a shell takes it."""
    words = recorded.get("command") or recorded.get("argv")
    if not words:
        return ""
    text = words if isinstance(words, str) else shlex.join(str(word) for word in words)
    return f'<pre class="wrap"><code>{escape(text)}</code></pre>'


def configuration(path: Path) -> str:
    """The resolved configuration, folded away."""
    if not path.is_file():
        return ""
    text = escape(path.read_text(encoding="utf-8").rstrip())
    return f"<details><summary>{escape(path.name)}</summary><pre><code>{text}</code></pre></details>"


def initialisation(recorded: Mapping[str, Any]) -> str:
    """Where each tower's first weights came from, by init_report.json; nothing for a run that drew them all."""
    lines = []
    for tower in ("image", "text"):
        found = recorded.get(tower) or {}
        if found:
            counts = ", ".join(f"{len(found[kind])} tensors {kind}" for kind in ("loaded", "resized", "skipped"))
            origin = f"{found['source']} ({found['layout']}): {counts}"
            lines.append(f'<p class="remark">The {tower} tower started from {escape(origin)}.</p>')
    return "".join(lines)


def attribution(folders: Sequence[Path]) -> str:
    """The ATTRIBUTION.md of each data folder, or of the folder above it, each once."""
    found: dict[Path, str] = {}
    for folder in folders:
        for place in (folder, folder.parent):
            path = (place / "ATTRIBUTION.md").resolve()
            if path.is_file() and path not in found:
                found[path] = markdown(path.read_text(encoding="utf-8"))
                break
    return "".join(found.values())


def markdown(text: str) -> str:
    """The little of Markdown that an attribution uses: headings, paragraphs, lists, tables. Addresses stay text."""
    blocks = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        while lines and lines[0].startswith("#"):
            blocks.append(f"<h3>{escape(lines.pop(0).lstrip('# '))}</h3>")
        if lines and all(line.startswith("|") for line in lines):
            blocks.append(_table([[cell.strip() for cell in line.strip("|").split("|")] for line in lines]))
        elif lines and all(line.startswith(("- ", "* ")) for line in lines):
            blocks.append("<ul>" + "".join(f"<li>{escape(line[2:])}</li>" for line in lines) + "</ul>")
        elif lines:
            blocks.append(f'<p class="remark">{_inline(" ".join(lines))}</p>')
    return "".join(blocks)


def _inline(text: str) -> str:
    """Escaped text, with `backticks` as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _table(rows: list[list[str]]) -> str:
    head, *body = [row for row in rows if not all(set(cell) <= set("-: ") for cell in row)]
    top = "".join(f'<th scope="col" class="text">{escape(cell)}</th>' for cell in head)
    lines = "".join("<tr>" + "".join(f'<td class="text">{escape(cell)}</td>' for cell in row) + "</tr>" for row in body)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="table">'
        f'<table class="loose"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows.extend(_flat(value, f"{name} "))
        else:
            rows.append((name, ", ".join(str(item) for item in value) if isinstance(value, list) else value))
    return rows
