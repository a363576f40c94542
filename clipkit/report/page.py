# SPDX-License-Identifier: Apache-2.0
"""The shell that every page shares: one HTML file that asks nobody for anything."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from clipkit.report.style import STYLE

# The browser itself keeps the promise: nothing but inline pictures and inline style is allowed to load or run.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(title: str, eyebrow: str, lead: str, sections: Sequence[str], footer: str) -> str:
    """A whole document. `title`, `eyebrow` and `footer` are text and escaped here; `lead` and `sections` are HTML."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="referrer" content="no-referrer">
<title>{escape(title)} · clipkit</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="eyebrow">{escape(eyebrow)}</p>
<h1>{escape(title)}</h1>
{lead}
</header>
<main>
{"".join(section for section in sections if section)}
</main>
<footer><p>{escape(footer)}</p></footer>
</body>
</html>
"""


def section(heading: str, name: str, *content: str, note: str = "") -> str:
    """A section with its own anchor; nothing at all when there is no content. `note` is text, `content` HTML."""
    body = "".join(content)
    if not body:
        return ""
    remark = f'<p class="remark">{escape(note)}</p>' if note else ""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(heading)}</h2>{remark}{body}</section>\n'


def facts(rows: Sequence[tuple[str, object]]) -> str:
    """A description list of (term, value); both are escaped, empty values left out."""
    items = "".join(
        f"<div><dt>{escape(str(term))}</dt><dd>{escape(str(value))}</dd></div>"
        for term, value in rows
        if value not in (None, "", [], {})
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


def write_page(path: Path, text: str) -> Path:
    """Write the whole file or nothing: a reader never meets half a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path
