# SPDX-License-Identifier: Apache-2.0
"""Weights in and out. Nothing is executed on reading (safetensors, or torch.load with weights_only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipkit.encoders.config import CLIPConfig, EvaConfig, ResNetConfig, TextConfig, VisionConfig
from clipkit.encoders.eva_layout import open_clip_vision, to_open_clip, with_rotations
from clipkit.encoders.layouts import State, custom_text_names
from clipkit.encoders.reading import read_weights, recognised, some
from clipkit.encoders.resizing import POSITIONS, fit_positions, fit_scalar
from clipkit.encoders.transformers_layout import to_transformers
from clipkit.errors import value_error

if TYPE_CHECKING:
    from clipkit.encoders.model import CLIP

_EXPORTS = ("open_clip", "open_clip_custom_text", "transformers", "eva_clip", "clipkit")


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did. Names are this library's, except `unexpected`, which are the checkpoint's own.

    untouched: parameters of a tower that the checkpoint's layout does not hold at all (a timm image tower has no text).
    mismatched, resized: "name: shape in the checkpoint -> shape in the model".
    """

    layout: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    resized: tuple[str, ...]
    untouched: tuple[str, ...]

    def __str__(self) -> str:
        counts = ", ".join(
            f"{len(names)} {what}"
            for what in ("loaded", "missing", "unexpected", "mismatched", "resized", "untouched")
            if (names := getattr(self, what))
        )
        return f"{self.layout}: {counts}"


def load_checkpoint(
    model: CLIP,
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    *,
    strict: bool = True,
    resize_positions: bool = False,
) -> LoadReport:
    """Fill `model` from a checkpoint and say what happened.

    Recognised: open_clip's CLIP and CustomTextCLIP (training checkpoints too), OpenAI's state dict, transformers'
    CLIPModel, timm's vision transformer (image tower only; a patch bias is folded into the positions, exactly),
    open_clip with a timm tower, EVA-CLIP as its publishers and as open_clip name it, whole or its image tower alone
    (tables of rotations are left out: they are made anew), and this library's own. DDP and torch.compile prefixes are
    dropped. Values are cast to the model's dtype and device.

    strict: every parameter and running statistic of the towers in the checkpoint must be given and fit, and nothing may
    be left over; otherwise ValueError names what is missing, unexpected and of another shape, and the model is
    unchanged. Not strict: what fits is loaded, the rest is reported.
    resize_positions: when the picture size differs, resample the image tower's positions (bicubic, antialiased); when
    the model's context is shorter, keep the first text positions.

    Raises FileNotFoundError for a missing file, ValueError for a file that is no checkpoint of tensors.
    """
    weights = read_weights(path_or_state_dict)
    layout = recognised(weights)
    given = layout.translate(weights.state)
    wanted = writable(model)
    in_layout = [name for name in wanted if name.startswith("visual.") or not layout.image_only]
    resized = _resize_positions(given, wanted) if resize_positions else ()
    fits = {name: value for name in in_layout if (value := fit_scalar(given.get(name), wanted[name])) is not None}
    report = LoadReport(
        layout=layout.name,
        loaded=tuple(fits),
        missing=tuple(name for name in in_layout if name not in given),
        unexpected=tuple(name for name in given if name not in wanted),
        mismatched=tuple(
            _shapes(name, given[name], wanted[name]) for name in in_layout if name in given and name not in fits
        ),
        resized=resized,
        untouched=tuple(name for name in wanted if name not in in_layout),
    )
    if strict:
        _refuse_gaps(report, weights.source)
    with torch.no_grad():
        for name, value in fits.items():
            wanted[name].copy_(value)
    return report


def export_state_dict(model: CLIP, layout: str = "open_clip") -> State:
    """The model's tensors by name, sharing its memory where the layout has the same shapes.

    layout: "open_clip" loads strictly into open_clip's model of the same configuration (`open_clip_config`): its CLIP,
    for an EVA tower its CustomTextCLIP; "open_clip_custom_text" into CustomTextCLIP always; "transformers" into
    transformers' CLIPModel (for pictures read by a vision transformer at the class token, as CLIP's); "eva_clip" into
    the code of EVA-CLIP's publishers; "clipkit" is for this library and holds for every model.
    ValueError for an unknown layout, and where the other library has no such model.
    """
    if layout not in _EXPORTS:
        raise value_error("layout", got=repr(layout), want=" or ".join(map(repr, _EXPORTS)), fix="choose one of them")
    state = {name: value.detach() for name, value in model.state_dict().items()}
    if layout == "clipkit":
        return state
    vision = _known_elsewhere(model.config)
    if layout == "transformers":
        as_published = isinstance(vision, VisionConfig) and vision.pre_norm and vision.pool == "tok"
        if not as_published or model.logit_bias is not None:
            raise value_error(
                "model",
                got="a ResNet, an EVA tower, no norm before the blocks, mean pooling or a logit bias",
                want="CLIP's own form, the only one of transformers' CLIPModel",
                fix="export with layout='open_clip'",
            )
        return to_transformers(state)
    if layout == "eva_clip":
        if not isinstance(vision, EvaConfig):
            raise value_error(
                "model", got=f"a {vision.kind} tower", want="an EVA tower", fix="export with layout='open_clip'"
            )
        return custom_text_names(with_rotations(state, vision))
    if isinstance(vision, EvaConfig):
        return custom_text_names(to_open_clip(state, vision))
    return custom_text_names(state) if layout == "open_clip_custom_text" else state


def open_clip_config(config: CLIPConfig) -> dict[str, Any]:
    """The model configuration that open_clip reads (its JSON files), for a model of this library.

    ValueError where open_clip has no such model: our small convolutional tower, an EVA tower of other than published
    sizes, ReLU in a transformer, or different activations in the two towers.
    """
    vision, text = _known_elsewhere(config), config.text
    activations = {tower.activation for tower in (vision, text) if isinstance(tower, (VisionConfig, TextConfig))}
    if len(activations) > 1 or "relu" in activations:
        raise value_error(
            "config",
            got=f"{' and '.join(sorted(activations))} in the transformers",
            want="gelu or quick_gelu, the same in both",
            fix="open_clip knows quick_gelu for both towers or neither",
        )
    converted: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "vision_cfg": _open_clip_vision(vision),
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": text.mlp_ratio,
            "norm_kwargs": {"eps": text.norm_eps},
        },
        "quick_gelu": text.activation == "quick_gelu",
    }
    if isinstance(vision, EvaConfig):
        converted["custom_text"] = True
    if config.init_logit_bias is not None:
        converted["init_logit_bias"] = config.init_logit_bias
    return converted


def _open_clip_vision(vision: VisionConfig | ResNetConfig | EvaConfig) -> dict[str, Any]:
    if isinstance(vision, EvaConfig):
        return open_clip_vision(vision)
    common = {"image_size": vision.image_size, "width": vision.width, "head_width": vision.head_width}
    if isinstance(vision, ResNetConfig):
        return {**common, "layers": list(vision.layers)}
    return {
        **common,
        "patch_size": vision.patch_size,
        "layers": vision.layers,
        "mlp_ratio": vision.mlp_ratio,
        "patch_dropout": vision.patch_dropout,
        "no_ln_pre": not vision.pre_norm,
        "pool_type": vision.pool,
        "norm_kwargs": {"eps": vision.norm_eps},
    }


def _known_elsewhere(config: CLIPConfig) -> VisionConfig | ResNetConfig | EvaConfig:
    if isinstance(config.vision, (VisionConfig, ResNetConfig, EvaConfig)):
        return config.vision
    raise value_error(
        "model",
        got="a convolutional image tower of our own",
        want="a vision transformer or CLIP's ResNet, which other libraries can load",
        fix="export with layout='clipkit'",
    )


def writable(model: CLIP) -> State:
    """The model's own tensors by name. ValueError where they have no memory."""
    wanted: State = dict(model.state_dict())
    if any(value.is_meta for value in wanted.values()):
        raise value_error(
            "model", got="parameters on the meta device", want="memory to load into", fix='model.to_empty(device="cpu")'
        )
    return wanted


def _shapes(name: str, value: Tensor, parameter: Tensor) -> str:
    """What differs, for a report."""
    return f"{name}: {tuple(value.shape)} -> {tuple(parameter.shape)}"


def _resize_positions(given: State, wanted: State) -> tuple[str, ...]:
    """Replace positions of other sizes in `given`; says which."""
    resized = []
    for name in [name for name in POSITIONS if name in given and name in wanted]:
        old, new = given[name], wanted[name]
        value = None if old.shape == new.shape else fit_positions(name, old, new.shape, antialias=True)
        if value is not None:
            resized.append(_shapes(name, old, new))
            given[name] = value
    return tuple(resized)


def _refuse_gaps(report: LoadReport, source: str) -> None:
    problems = [
        f"{len(names)} {what} ({some(names)})"
        for what in ("missing", "unexpected", "mismatched")
        if (names := getattr(report, what))
    ]
    if problems:
        fix = "load with strict=False to take what fits, or create the model with the checkpoint's sizes"
        if any(name.partition(":")[0] in POSITIONS for name in report.mismatched):
            fix += "; resize_positions=True adapts the positions"
        raise value_error(
            "checkpoint", got=f"{source} with {'; '.join(problems)}", want="this model's tensors", fix=fix
        )
