# SPDX-License-Identifier: Apache-2.0
"""The models that have a name. The large ones carry open_clip's names and sizes; the small ones are our own."""

from __future__ import annotations

from dataclasses import replace

from clipkit.encoders.config import (
    CLIPConfig,
    ConvConfig,
    EvaConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
    nearest,
)
from clipkit.errors import value_error

_BASE_TEXT = TextConfig()
_LARGE_TEXT = TextConfig(width=768, heads=12)
_HUGE_TEXT = TextConfig(width=1024, heads=16, layers=24)
_GIGANTIC_TEXT = TextConfig(width=1280, heads=20, layers=32)

_STANDARD = {
    "ViT-B-32": CLIPConfig(512, VisionConfig(patch_size=32), _BASE_TEXT),
    "ViT-B-16": CLIPConfig(512, VisionConfig(patch_size=16), _BASE_TEXT),
    "ViT-L-14": CLIPConfig(768, VisionConfig(patch_size=14, width=1024, layers=24), _LARGE_TEXT),
    "ViT-L-14-336": CLIPConfig(768, VisionConfig(image_size=336, patch_size=14, width=1024, layers=24), _LARGE_TEXT),
    "RN50": CLIPConfig(1024, ResNetConfig(layers=(3, 4, 6, 3)), _BASE_TEXT),
    "RN101": CLIPConfig(512, ResNetConfig(layers=(3, 4, 23, 3)), _BASE_TEXT),
    "RN50x4": CLIPConfig(
        640, ResNetConfig(image_size=288, layers=(4, 6, 10, 6), width=80), TextConfig(width=640, heads=10)
    ),
    "RN50x16": CLIPConfig(768, ResNetConfig(image_size=384, layers=(6, 8, 18, 8), width=96), _LARGE_TEXT),
    "RN50x64": CLIPConfig(
        1024, ResNetConfig(image_size=448, layers=(3, 15, 36, 10), width=128), TextConfig(width=1024, heads=16)
    ),
}

_EVA_BASE = EvaConfig()
_EVA_LARGE = EvaConfig(patch_size=14, width=1024, layers=24, hidden=2730)
_EVA_G = EvaConfig(
    patch_size=14, width=1408, layers=40, head_width=88, hidden=6144, sub_norm=False, rope=False, drop_path=0.4
)
_EVA_E = EvaConfig(
    patch_size=14, width=1792, layers=64, head_width=112, hidden=15360, sub_norm=False, rope=False, post_norm=True
)

# Towers and sizes: Sun et al. 2023 and the configurations of their code. The text towers have the exact GELU, also
# where their weights began as OpenAI's.
_EVA = {
    "EVA01-g-14": CLIPConfig(1024, _EVA_G, _LARGE_TEXT),
    "EVA01-g-14-plus": CLIPConfig(1024, replace(_EVA_G, drop_path=0.0), _HUGE_TEXT),
    "EVA02-B-16": CLIPConfig(512, _EVA_BASE, _BASE_TEXT),
    "EVA02-L-14": CLIPConfig(768, _EVA_LARGE, _LARGE_TEXT),
    "EVA02-L-14-336": CLIPConfig(768, replace(_EVA_LARGE, image_size=336), _LARGE_TEXT),
    "EVA02-E-14": CLIPConfig(1024, _EVA_E, _HUGE_TEXT),
    "EVA02-E-14-plus": CLIPConfig(1024, _EVA_E, _GIGANTIC_TEXT),
}


def _quick_gelu(config: CLIPConfig) -> CLIPConfig:
    """The activation that OpenAI's weights were trained with; a ResNet keeps its ReLU."""
    towers = ("text",) if isinstance(config.vision, ResNetConfig) else ("vision", "text")
    return config.replace({f"{tower}.activation": "quick_gelu" for tower in towers})


_SMALL = {
    "vit-tiny-32px": CLIPConfig(
        128,
        VisionConfig(image_size=32, patch_size=4, width=128, layers=6, head_width=32),
        TextConfig(width=128, heads=4, layers=4),
    ),
    "vit-small-32px": CLIPConfig(
        256,
        VisionConfig(image_size=32, patch_size=4, width=256, layers=8),
        TextConfig(width=256, heads=4, layers=6),
    ),
    "vit-small-64px": CLIPConfig(
        384,
        VisionConfig(image_size=64, patch_size=8, width=384, layers=12),
        TextConfig(width=384, heads=6, layers=6),
    ),
    "eva-tiny-32px": CLIPConfig(
        128,
        EvaConfig(image_size=32, patch_size=4, width=128, layers=6, head_width=32, hidden=344),
        TextConfig(width=128, heads=4, layers=4),
    ),
    "resnet-tiny-64px": CLIPConfig(
        256,
        ResNetConfig(image_size=64, layers=(1, 1, 1, 1), width=16, head_width=32),
        TextConfig(width=128, heads=4, layers=2, vocab_size=8192),
    ),
    "conv-tiny-32px": CLIPConfig(
        256,
        ConvConfig(widths=(32, 96, 192), activation="relu"),
        TextConfig(width=128, heads=4, layers=2, vocab_size=8192),
    ),
}

MODELS: dict[str, CLIPConfig] = {
    **_STANDARD,
    **{f"{name}-quickgelu": _quick_gelu(config) for name, config in _STANDARD.items()},
    **_EVA,
    **_SMALL,
}


def list_models() -> list[str]:
    """Names that `create_model` and `get_tokenizer` know."""
    return sorted(MODELS)


def get_config(name: str) -> CLIPConfig:
    """The configuration of a named model. ValueError names the nearest names.

    "ViT-B/32" is read as "ViT-B-32", and the publishers' "EVA02-CLIP-B-16" as "EVA02-B-16".
    """
    key = name.replace("/", "-").replace("-CLIP-", "-")
    if key not in MODELS:
        raise value_error("name", got=repr(name), want="a model that list_models() names", fix=nearest(key, MODELS))
    return replace(MODELS[key])
