# SPDX-License-Identifier: Apache-2.0
"""Model configurations: frozen dataclasses that turn into plain YAML/JSON types and back."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from clipkit.errors import value_error

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_VOCAB_SIZE = 49408
ACTIVATIONS = ("gelu", "quick_gelu", "relu")
INIT_LOGIT_SCALE = math.log(1 / 0.07)

Triple = tuple[float, float, float]


class _OfPatches:
    """What follows from the sizes of a transformer over patches."""

    image_size: int
    patch_size: int
    width: int
    head_width: int

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.width // self.head_width

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class VisionConfig(_OfPatches):
    """A vision transformer (Dosovitskiy et al. 2021, with CLIP's pre-norm).

    image_size, patch_size: pixels, square; the first a multiple of the second.
    patch_dropout: share of the patches left out in training (Li et al. 2022, "FLIP"); 0 switches it off.
    pool: "tok" takes the class token, "avg" the mean over patches.
    mean, std: per channel, what pixels in [0, 1] are normalised with before they reach the model.
    """

    kind: ClassVar[str] = "vit"

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    head_width: int = 64
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    norm_eps: float = 1e-5
    pre_norm: bool = True
    pool: str = "tok"
    patch_dropout: float = 0.0
    mean: Triple = OPENAI_MEAN
    std: Triple = OPENAI_STD

    def __post_init__(self) -> None:
        _positive("vision", self, ("image_size", "patch_size", "width", "layers", "head_width"))
        _one_of("vision.activation", self.activation, ACTIVATIONS)
        _one_of("vision.pool", self.pool, ("tok", "avg"))
        _divides("vision.image_size", self.image_size, "patch_size", self.patch_size)
        _divides("vision.width", self.width, "head_width", self.head_width)
        _share("vision.patch_dropout", self.patch_dropout)


@dataclass(frozen=True)
class ConvConfig:
    """A small convolutional tower for pictures of 32 or 64 pixels.

    A strided stem, then stages of depthwise blocks (depthwise convolution, LayerNorm, two pointwise layers, as in
    Liu et al. 2022, "A ConvNet for the 2020s"), each stage after the first halving the side; mean over positions.
    No batch statistics: a picture's features do not depend on its neighbours in the batch.

    widths, depths: channels and blocks of each stage. image_size must be a multiple of stem_stride * 2**(stages - 1).
    """

    kind: ClassVar[str] = "conv"

    image_size: int = 32
    stem_kernel: int = 4
    stem_stride: int = 2
    widths: tuple[int, ...] = (64, 128, 256)
    depths: tuple[int, ...] = (1, 2, 2)
    kernel_size: int = 3
    mlp_ratio: float = 2.0
    activation: str = "gelu"
    norm_eps: float = 1e-5
    mean: Triple = OPENAI_MEAN
    std: Triple = OPENAI_STD

    def __post_init__(self) -> None:
        _positive("vision", self, ("image_size", "stem_kernel", "stem_stride", "kernel_size"))
        _one_of("vision.activation", self.activation, ACTIVATIONS)
        if not self.widths or len(self.widths) != len(self.depths):
            raise value_error(
                "vision.depths",
                got=f"{len(self.depths)} depths for {len(self.widths)} widths",
                want="one depth for each width",
                fix="give both the same length",
            )
        if self.kernel_size % 2 == 0:
            raise value_error("vision.kernel_size", got=self.kernel_size, want="an odd number", fix="use 3, 5 or 7")
        if self.stem_kernel < self.stem_stride or (self.stem_kernel - self.stem_stride) % 2:
            raise value_error(
                "vision.stem_kernel",
                got=f"{self.stem_kernel} with stride {self.stem_stride}",
                want="the stride plus an even number",
                fix="use 2, 4 or 6 with stride 2; 4 with stride 4",
            )
        _divides("vision.image_size", self.image_size, "total stride", self.stem_stride * 2 ** (len(self.widths) - 1))


@dataclass(frozen=True)
class ResNetConfig:
    """CLIP's modified ResNet: four stages of bottlenecks, then attention over the last map (Radford et al. 2021).

    layers: bottlenecks of each of the four stages. width: channels after the stem; the last map has 32 times as many.
    head_width: channels of each head of the attention pool. image_size: pixels, square, a multiple of 32.
    BatchNorm in training uses the statistics of what one process encodes at once, a micro-batch, as published runs did:
    features then depend on the rows per process and on gradient accumulation, unlike those of the other towers.
    Evaluation uses running statistics, which the trainer keeps equal on every rank (their mean).
    """

    kind: ClassVar[str] = "resnet"

    image_size: int = 224
    layers: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    head_width: int = 64
    mean: Triple = OPENAI_MEAN
    std: Triple = OPENAI_STD

    def __post_init__(self) -> None:
        _positive("vision", self, ("image_size", "width", "head_width"))
        if len(self.layers) != 4 or not all(isinstance(depth, int) and depth >= 1 for depth in self.layers):
            raise value_error(
                "vision.layers", got=self.layers, want="four whole numbers >= 1", fix="RN50 has (3, 4, 6, 3)"
            )
        _divides("vision.image_size", self.image_size, "total stride", 32)
        _divides("vision.width", self.width, "the stem's halving", 2)
        _divides("vision.width * 32", self.width * 32, "head_width", self.head_width)

    @property
    def heads(self) -> int:
        """Heads of the attention pool."""
        return self.width * 32 // self.head_width

    @property
    def grid(self) -> int:
        """Positions along one side of the last map."""
        return self.image_size // 32


@dataclass(frozen=True)
class EvaConfig(_OfPatches):
    """EVA-CLIP's vision transformer (Sun et al. 2023, "EVA-CLIP"; its blocks: Fang et al. 2023, "EVA-02").

    image_size, patch_size: pixels, square; the first a multiple of the second.
    hidden: width inside the MLP.
    sub_norm: EVA-02's block, with SwiGLU for the MLP and a LayerNorm before each of the two output projections; False
        is EVA-01's: a GELU MLP and neither norm.
    rope: rotate queries and keys by their patch's row and column, beside the learnt positions. The angles are those of
        a grid of `rope_grid` patches, stretched over the picture.
    post_norm: normalise what a branch adds, not what it reads (the E models).
    patch_dropout: share of the patches left out in training (Li et al. 2022, "FLIP").
    drop_path: share of the samples whose branch is left out in the last block in training, rising linearly from 0 in
        the first (Huang et al. 2016, "Deep networks with stochastic depth"); pre-norm only.
    mean, std: per channel, what pixels in [0, 1] are normalised with before they reach the model.
    """

    kind: ClassVar[str] = "eva"

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    layers: int = 12
    head_width: int = 64
    hidden: int = 2048
    sub_norm: bool = True
    rope: bool = True
    rope_grid: int = 16
    post_norm: bool = False
    norm_eps: float = 1e-6
    patch_dropout: float = 0.0
    drop_path: float = 0.0
    mean: Triple = OPENAI_MEAN
    std: Triple = OPENAI_STD

    def __post_init__(self) -> None:
        whole = ("image_size", "patch_size", "width", "layers", "head_width", "hidden", "rope_grid")
        _positive("vision", self, whole)
        _divides("vision.image_size", self.image_size, "patch_size", self.patch_size)
        _divides("vision.width", self.width, "head_width", self.head_width)
        if self.rope:
            _divides("vision.head_width", self.head_width, "two axes of pairs", 4)
        _share("vision.patch_dropout", self.patch_dropout)
        _share("vision.drop_path", self.drop_path)
        if self.post_norm and self.drop_path:
            raise value_error(
                "vision.drop_path", got=f"{self.drop_path} with post_norm", want="0", fix="use one or the other"
            )


@dataclass(frozen=True)
class TextConfig:
    """A causal text transformer whose feature is the one at the end-of-text token (Radford et al. 2021).

    context_length: most tokens of a caption, start and end tokens included.
    vocab_size: 49408 is CLIP's; a smaller one keeps that many of CLIP's merges (see clipkit.data.tokens).
    """

    context_length: int = 77
    vocab_size: int = CLIP_VOCAB_SIZE
    width: int = 512
    heads: int = 8
    layers: int = 12
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _positive("text", self, ("context_length", "vocab_size", "width", "heads", "layers"))
        _one_of("text.activation", self.activation, ACTIVATIONS)
        _divides("text.width", self.width, "heads", self.heads)


ImageConfig = VisionConfig | ConvConfig | ResNetConfig | EvaConfig
_TOWERS: dict[str, type[ImageConfig]] = {
    tower.kind: tower for tower in (VisionConfig, ConvConfig, ResNetConfig, EvaConfig)
}


@dataclass(frozen=True)
class CLIPConfig:
    """Two towers and the head between them.

    embed_dim: width of the shared space. init_logit_scale: start of the log of the multiplier.
    init_logit_bias: None for CLIP; a number gives the model SigLIP's bias (Zhai et al. 2023: ln 10 and -10).
    """

    embed_dim: int
    vision: ImageConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    init_logit_scale: float = INIT_LOGIT_SCALE
    init_logit_bias: float | None = None

    def __post_init__(self) -> None:
        _positive("model", self, ("embed_dim",))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain types (tuples become lists), ready for YAML or JSON."""
        plain = _plain(dataclasses.asdict(self))
        plain["vision"] = {"kind": self.vision.kind, **plain["vision"]}
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPConfig:
        """The configuration `to_dict` wrote. ValueError names an unknown key and the nearest known one."""
        values = dict(values)
        vision = dict(values.pop("vision", {}))
        text = dict(values.pop("text", {}))
        kind = vision.pop("kind", "vit")
        _one_of("vision.kind", kind, tuple(_TOWERS))
        tower = _TOWERS[kind]
        _known("model", values, cls)
        return cls(
            **values,
            vision=tower(**_checked("vision", vision, tower)),
            text=TextConfig(**_checked("text", text, TextConfig)),
        )

    def replace(self, overrides: Mapping[str, Any]) -> CLIPConfig:
        """A copy with some values changed.

        Keys are dotted ("vision.patch_dropout") or, where only one section has the field, flat ("patch_dropout").
        ValueError names an unknown or ambiguous key.
        """
        changed = self.to_dict()
        for key, value in overrides.items():
            section, name = self._place(key)
            (changed[section] if section else changed)[name] = value
        return self.from_dict(changed)

    def _place(self, key: str) -> tuple[str, str]:
        places = {
            "": [f.name for f in dataclasses.fields(self) if f.name not in ("vision", "text")],
            "vision": [f.name for f in dataclasses.fields(self.vision)],
            "text": [f.name for f in dataclasses.fields(self.text)],
        }
        dotted = {f"{section}.{name}".lstrip("."): (section, name) for section in places for name in places[section]}
        if key in dotted:
            return dotted[key]
        homes = [name for name, (_, last) in dotted.items() if last == key]
        if len(homes) == 1:
            return dotted[homes[0]]
        if homes:
            raise value_error("overrides", got=repr(key), want="one section's field", fix=f"write {' or '.join(homes)}")
        raise value_error("overrides", got=repr(key), want="a field of the model", fix=nearest(key, dotted))


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known words closest to `word`."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5) or names
    return "did you mean " + ", ".join(close) + "?"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _known(section: str, values: Mapping[str, Any], cls: type) -> None:
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise value_error(section, got=f"unknown key {key!r}", want=f"fields of {section}", fix=nearest(key, names))


def _checked(section: str, values: Mapping[str, Any], cls: type) -> dict[str, Any]:
    _known(section, values, cls)
    return {name: tuple(entry) if isinstance(entry, list) else entry for name, entry in values.items()}


def _positive(section: str, config: object, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise value_error(
                f"{section}.{name}", got=repr(value), want="a whole number >= 1", fix="check the spelling"
            )


def _one_of(argument: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise value_error(argument, got=repr(value), want=" or ".join(map(repr, known)), fix="choose one of them")


def _divides(argument: str, value: int, name: str, divisor: int) -> None:
    if value % divisor:
        raise value_error(argument, got=value, want=f"a multiple of {name} = {divisor}", fix="change one of the two")


def _share(argument: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise value_error(argument, got=value, want="a share in [0, 1)", fix="0 switches it off")
