# SPDX-License-Identifier: Apache-2.0
"""Image and text towers, checkpoints in and out."""

from clipkit.encoders.config import CLIPConfig, ConvConfig, TextConfig, VisionConfig
from clipkit.encoders.model import CLIP, create_model
from clipkit.encoders.packing import PackedText, pack
from clipkit.encoders.zoo import get_config, list_models

__all__ = [
    "CLIP",
    "CLIPConfig",
    "ConvConfig",
    "PackedText",
    "TextConfig",
    "VisionConfig",
    "create_model",
    "get_config",
    "list_models",
    "pack",
]
