# SPDX-License-Identifier: Apache-2.0
"""Headline figures and result tables, each beside the level of chance."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from clipkit.report.metrics import percent

Numbers = Mapping[str, Mapping[str, float]]

_DIRECTIONS = (("image_to_text", "picture → caption"), ("text_to_image", "caption → picture"))


def headline(retrieval: Numbers, zero_shot: Numbers) -> str:
    """The few numbers to remember: R@1 from picture to caption of each retrieval set, top-1 of each zero-shot set."""
    items = [
        _figure(
            name,
            found["image_to_text/R@1"],
            found["image_to_text/chance_R@1"],
            f"of {found['image_to_text/queries']:,.0f} pictures find their caption first among "
            f"{found['image_to_text/candidates']:,.0f}",
        )
        for name, found in retrieval.items()
    ] + [
        _figure(
            name,
            found["top@1"],
            found["chance_top@1"],
            f"of {found['queries']:,.0f} pictures are named right among {found['candidates']:,.0f} classes",
        )
        for name, found in zero_shot.items()
    ]
    return f'<ul class="headline" aria-label="Main results">{"".join(items)}</ul>' if items else ""


def retrieval_table(retrieval: Numbers) -> str:
    """Recalls of every retrieval set, both ways."""
    if not retrieval:
        return ""
    rows = []
    for name, found in retrieval.items():
        for position, (direction, words) in enumerate(_DIRECTIONS):
            label = escape(name) if position == 0 else f'<span class="unseen">{escape(name)}</span>'
            cells = "".join(f"<td>{_strong(percent(found[f'{direction}/R@{k}']), k == 1)}</td>" for k in (1, 5, 10))
            rows.append(
                f'<tr><th scope="row">{label}</th><td class="text">{words}</td>{cells}'
                f'<td class="faint">{percent(found[f"{direction}/chance_R@1"])}</td>'
                f"<td>{found[f'{direction}/queries']:,.0f}</td><td>{found[f'{direction}/candidates']:,.0f}</td></tr>"
            )
    heads = ("R@1", "R@5", "R@10", "chance R@1", "asked", "candidates")
    return _table(
        "Retrieval: how often a right answer is among the first 1, 5, 10. Ties count as wrong." + _left_out(retrieval),
        ("set", "direction"),
        heads,
        rows,
    )


def zero_shot_table(zero_shot: Numbers) -> str:
    """Accuracies of every zero-shot set."""
    if not zero_shot:
        return ""
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td>{_strong(percent(found["top@1"]), True)}</td>'
        f'<td>{percent(found["top@5"])}</td><td class="faint">{percent(found["chance_top@1"])}</td>'
        f"<td>{found['queries']:,.0f}</td><td>{found['candidates']:,.0f}</td></tr>"
        for name, found in zero_shot.items()
    ]
    heads = ("top 1", "top 5", "chance top 1", "pictures", "classes")
    return _table("Zero-shot classification." + _left_out(zero_shot), ("set",), heads, rows)


def _figure(name: str, share: float, chance: float, says: str) -> str:
    value, _, unit = percent(share).partition(" ")
    times = f"; this is {share / chance:,.0f} times as often" if chance > 0 and share / chance >= 2 else ""
    return (
        f'<li><span class="eyebrow">{escape(name)}</span><span class="value">{value}<small>{unit}</small></span>'
        f'<span class="says">{says}</span><span class="chance">Chance: {percent(chance)}{times}</span></li>'
    )


def _left_out(sets: Numbers) -> str:
    """Said where it happened: pictures that could not be read, and pictures without a right answer."""
    said = [
        f"{name}: {', '.join(parts)}"
        for name, found in sets.items()
        if (
            parts := [
                f"{found[key]:,.0f} {words}"
                for key, words in (("skipped", "broken and skipped"), ("unanswered", "without a right answer"))
                if found.get(key)
            ]
        )
    ]
    return f" Left out: {escape('; '.join(said))}." if said else ""


def _table(caption: str, words: tuple[str, ...], figures: tuple[str, ...], rows: list[str]) -> str:
    heads = "".join(f'<th scope="col" class="text">{word}</th>' for word in words) + "".join(
        f'<th scope="col">{figure}</th>' for figure in figures
    )
    return (
        f'<p class="remark said">{caption}</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Results table">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _strong(text: str, yes: bool) -> str:
    return f"<b>{text}</b>" if yes else text
