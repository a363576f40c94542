# SPDX-License-Identifier: Apache-2.0
"""Image and text towers, checkpoints in and out."""

from clipkit.encoders.checkpoint import LoadReport, export_state_dict, load_checkpoint, open_clip_config
from clipkit.encoders.config import CLIPConfig, ConvConfig, EvaConfig, ResNetConfig, TextConfig, VisionConfig
from clipkit.encoders.model import CLIP, create_model
from clipkit.encoders.packing import PackedText, pack
from clipkit.encoders.towers import PUBLISHED_SKIP, load_towers
from clipkit.encoders.towers_report import TowerReport, TowersReport
from clipkit.encoders.zoo import get_config, list_models

__all__ = [
    "CLIP",
    "PUBLISHED_SKIP",
    "CLIPConfig",
    "ConvConfig",
    "EvaConfig",
    "LoadReport",
    "PackedText",
    "ResNetConfig",
    "TextConfig",
    "TowerReport",
    "TowersReport",
    "VisionConfig",
    "create_model",
    "export_state_dict",
    "get_config",
    "list_models",
    "load_checkpoint",
    "load_towers",
    "open_clip_config",
    "pack",
]
