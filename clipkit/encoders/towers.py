# SPDX-License-Identifier: Apache-2.0
"""Starting a model from other models' towers: the image tower of one checkpoint, the text tower of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipkit.encoders.checkpoint import writable
from clipkit.encoders.config import nearest
from clipkit.encoders.layouts import TEXT_NAMES, State
from clipkit.encoders.origins import translate
from clipkit.encoders.reading import Weights, read_weights, recognised
from clipkit.encoders.resizing import fit_patches, fit_positions, fit_scalar
from clipkit.encoders.towers_report import OTHER_TOWER, Resized, TowerReport, TowersReport
from clipkit.errors import type_error, value_error

if TYPE_CHECKING:
    from clipkit.encoders.model import CLIP

# EVA-CLIP's launch scripts: both projections and the temperature start anew, and what masked image modelling had on top
# of the tower (a token for hidden patches, a head that predicts, a decoder) and tables that are computed stay behind.
PUBLISHED_SKIP = (
    *("visual.proj", "visual.head", "visual.attnpool.c_proj", "head", "text_projection"),
    *("logit_scale", "logit_bias"),
    *("mask_token", "visual.mask_token", "lm_head", "visual.lm_head", "decoder*", "visual.decoder*"),
    "*rope.freqs_*",
)
_TEMPERATURE = ("logit_scale", "logit_bias")
_OTHER = {"image": "text", "text": "image"}

Source = str | Path | Mapping[str, Tensor] | Weights


def load_towers(
    model: CLIP,
    *,
    image: Source | None = None,
    text: Source | None = None,
    skip: Sequence[str] = PUBLISHED_SKIP,
    resize: bool = True,
) -> TowersReport:
    """Fill the image tower from one checkpoint, the text tower from another, and account for every tensor of all three.

        model = clipkit.create_model("ViT-B-16")
        report = clipkit.load_towers(model, image="mae_vit_b.safetensors", text="open_clip_model.safetensors")
        print(report)

    image, text: a .safetensors or .pt file or a state dict in any layout that `load_checkpoint` reads, whole models
    and single towers alike; only the one tower is taken from it. The temperature counts as text.
    skip: names that keep the values they have in the model, and need not be used in a checkpoint: shell patterns
    (`visual.blocks.*.attn.*`), which also stand for everything below what they match (`visual.head` for
    `visual.head.weight`), in our names. It replaces the published list `PUBLISHED_SKIP`: both projections, the
    temperature, masked image modelling's own tensors, rotary tables.
    resize: bring the image tower's positions and patch kernels (both bicubic, not antialiased, class token kept) and
    text positions (first rows) to the model's sizes; see `clipkit.encoders.resizing`.

    All or nothing: ValueError unless every parameter and running statistic of the towers is in its checkpoint and fits,
    or is skipped, and every tensor of the checkpoint has a use, belongs to the other tower or is skipped. The message
    names everything that is not so, of both towers, and the model is as it was. ValueError also for a pattern outside
    the published list that matches nothing; FileNotFoundError for a missing file.
    """
    given = {name: read_weights(one) for name, one in (("image", image), ("text", text)) if one is not None}
    if not given:
        raise value_error("image, text", got="neither", want="at least one checkpoint", fix="name a file")
    if isinstance(skip, str):
        raise type_error("skip", got=repr(skip), want="a sequence of patterns", fix=f"skip=({skip!r},)")
    wanted = writable(model)
    plans = {tower: _plan(tower, weights, wanted, skip, resize) for tower, weights in given.items()}
    _refuse_idle_patterns(skip, plans.values())
    _refuse_gaps(plans)
    with torch.no_grad():
        for plan in plans.values():
            for name, value in plan.values.items():
                wanted[name].copy_(value)
    reports = {tower: plan.report for tower, plan in plans.items()}
    untouched = tuple(name for name in wanted if not any(_belongs(name, tower) for tower in plans))
    return TowersReport(reports.get("image"), reports.get("text"), untouched)


@dataclass(frozen=True)
class _Plan:
    """What would be done to one tower, and what stands against it: kinds of problems, each with its names."""

    report: TowerReport
    values: State
    names: frozenset[str]
    problems: Mapping[str, Sequence[str]]


def _plan(tower: str, weights: Weights, wanted: State, skip: Sequence[str], resize: bool) -> _Plan:
    layout = recognised(weights)
    given, origins = translate(layout, weights.state)
    own = [name for name in wanted if _belongs(name, tower)]
    # What no tower knows counts as this one's, so that it has to be accounted for; an image tower alone has no other's.
    alone = layout.image_only and tower == "image"
    held = [name for name in given if alone or not _belongs(name, _OTHER[tower])]
    names = frozenset((*own, *held))
    skipped = {name: pattern for name in (*own, *held) if (pattern := _pattern(name, skip)) is not None}
    to_fill = [name for name in own if name not in skipped]
    fitted = {name: one for name in to_fill if name in given and (one := _fit(name, given[name], wanted[name], resize))}
    values = {name: value for name, (value, _) in fitted.items()}
    sources = frozenset[str]().union(*(origins[name] for name in values))
    report = TowerReport(
        source=weights.source,
        layout=layout.name,
        loaded=tuple(name for name, (_, how) in fitted.items() if how is None),
        resized={name: how for name, (_, how) in fitted.items() if how is not None},
        skipped={name: skipped[name] for name in own if name in skipped},
        used=tuple(name for name in weights.state if name in sources),
        unused=_reasons([name for name in weights.state if name not in sources], origins, skipped),
    )
    problems = {
        "missing": [name for name in to_fill if name not in given],
        "of another shape": [
            f"{name}: {tuple(given[name].shape)} -> {tuple(wanted[name].shape)}"
            for name in to_fill
            if name in given and name not in fitted
        ],
        "left over": [name for name in held if name not in wanted and name not in skipped],
    }
    return _Plan(report, values, names, problems)


def _fit(name: str, value: Tensor, parameter: Tensor, resize: bool) -> tuple[Tensor, Resized | None] | None:
    """The value in the parameter's shape, and how it came to it if it had another; None when there is no way."""
    same = fit_scalar(value, parameter)
    if same is not None:
        return same, None
    if not resize:
        return None
    fitted = fit_patches(name, value, parameter.shape)
    if fitted is None:
        fitted = fit_positions(name, value, parameter.shape, antialias=False)
    if fitted is None:
        return None
    how = "bicubic" if name.startswith("visual.") else "first rows"
    return fitted, Resized(tuple(value.shape), tuple(parameter.shape), how)


def _belongs(name: str, tower: str) -> bool:
    if tower == "image":
        return name.startswith("visual.")
    return name.startswith(TEXT_NAMES) or name in _TEMPERATURE


def _pattern(name: str, skip: Iterable[str]) -> str | None:
    """The first pattern that the name, or what it lies below, matches."""
    return next((one for one in skip if fnmatchcase(name, one) or fnmatchcase(name, f"{one}.*")), None)


def _reasons(unused: list[str], origins: Mapping[str, frozenset[str]], skipped: Mapping[str, str]) -> dict[str, str]:
    """Why each of the checkpoint's tensors has no use."""
    known = {
        origin: f"skipped by {skipped[name]!r}" if name in skipped else OTHER_TOWER
        for name, its_origins in origins.items()
        for origin in its_origins
    }
    return {name: known.get(name, "no weight: a setting, or a table that is computed") for name in unused}


def _refuse_idle_patterns(skip: Sequence[str], plans: Iterable[_Plan]) -> None:
    names = frozenset[str]().union(*(plan.names for plan in plans))
    idle = [one for one in skip if one not in PUBLISHED_SKIP and not any(_pattern(name, (one,)) for name in names)]
    if idle:
        raise value_error(
            "skip",
            got=", ".join(map(repr, idle)),
            want="patterns that match a parameter of the towers or a tensor of their checkpoints",
            fix=nearest(idle[0], names),
        )


def _refuse_gaps(plans: Mapping[str, _Plan]) -> None:
    """One error for everything that is wrong with either tower, every name in it."""
    complaints = []
    for tower, plan in plans.items():
        found = [f"{len(names)} {kind} ({', '.join(names)})" for kind, names in plan.problems.items() if names]
        if found:
            complaints.append(f"{tower} from {plan.report.source} ({plan.report.layout}) with {'; '.join(found)}")
    if complaints:
        raise value_error(
            "towers",
            got="; ".join(complaints),
            want="every parameter filled or skipped, and every tensor used or skipped",
            fix="create the model with the checkpoint's sizes (resize adapts positions and patches only), or name in "
            "skip what is to start anew or stay behind",
        )
