# SPDX-License-Identifier: Apache-2.0
"""The two towers together, and `create_model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.encoders.batch_norm import running_statistics
from clipkit.encoders.checkpoint import load_checkpoint
from clipkit.encoders.config import CLIPConfig
from clipkit.encoders.conv import ConvTower
from clipkit.encoders.eva import EvaTower
from clipkit.encoders.initialise import (
    initialise_conv,
    initialise_eva,
    initialise_head,
    initialise_resnet,
    initialise_text,
    initialise_vision,
)
from clipkit.encoders.packing import PackedText
from clipkit.encoders.resnet import ModifiedResNet
from clipkit.encoders.text import TextTower, autocast_dtype, unit_length
from clipkit.encoders.vision import VisionTransformer
from clipkit.encoders.zoo import get_config
from clipkit.errors import type_error, value_error

ImageTower = VisionTransformer | ConvTower | ModifiedResNet | EvaTower
_TOWERS: dict[str, tuple[Callable[[Any, int], ImageTower], Callable[[Any], None]]] = {
    "vit": (VisionTransformer, initialise_vision),
    "conv": (ConvTower, initialise_conv),
    "resnet": (ModifiedResNet, initialise_resnet),
    "eva": (EvaTower, initialise_eva),
}


class CLIP(TextTower):
    """An image tower (`visual`), a text tower and a temperature.

    State-dict names are open_clip's CLIP's. `logit_scale` (and `logit_bias`, or None) are 0-D parameters, the scale as
    a logarithm; both stay at least float32 under `create_model(dtype=...)`.
    """

    def __init__(self, config: CLIPConfig) -> None:
        device = torch.get_default_device()
        # shapes first, values once: the modules' own defaults would be drawn only to be overwritten
        with torch.device("meta"):
            super().__init__(config.text, config.embed_dim)
            self.config = config
            tower, _ = _TOWERS[config.vision.kind]
            self.visual: ImageTower = tower(config.vision, config.embed_dim)
            self.logit_scale = nn.Parameter(torch.empty(()))
            self.logit_bias = None if config.init_logit_bias is None else nn.Parameter(torch.empty(()))
        if device.type != "meta":
            self.to_empty(device=device)
            self.init_weights()

    def init_weights(self) -> None:
        """Draw every parameter anew from torch's generator and reset running statistics.

        Also what a model made on "meta" needs after to_empty().
        """
        with torch.no_grad():
            initialise_text(self)
            _, initialise = _TOWERS[self.config.vision.kind]
            initialise(self.visual)
            initialise_head(self.logit_scale, self.logit_bias, self.config)

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """[n, 3, image_size, image_size], already normalised, in the model's dtype -> [n, embed_dim]; n may be 0.

        normalize: unit length (the norm is taken in float32). Raises ValueError for a wrong shape, TypeError for a
        wrong dtype.
        """
        self._check_pixels(pixels)
        features = self.visual(pixels)
        return unit_length(features) if normalize else features

    def forward(
        self,
        pixels: Tensor | None = None,
        tokens: Tensor | PackedText | None = None,
        *,
        image_ready: Callable[[Tensor], None] | None = None,
    ) -> dict[str, Tensor]:
        """Unit-length features of what is given, and the multiplier.

        image_ready: called once with the image features, detached, before the text tower starts, so that a loss can
        begin to send them. Values only: gradients go through the returned features, which a wrapper (FSDP2's hooks,
        its output_dtype) may have replaced by then.

        Returns image_features [n, embed_dim], text_features [m, embed_dim], logit_scale (0-D, exponentiated) and, where
        the model has one, logit_bias (0-D).
        """
        outputs: dict[str, Tensor] = {}
        if pixels is not None:
            outputs["image_features"] = self.encode_image(pixels, normalize=True)
            if image_ready is not None:
                image_ready(outputs["image_features"].detach())
        if tokens is not None:
            outputs["text_features"] = self.encode_text(tokens, normalize=True)
        outputs["logit_scale"] = self.logit_scale.exp()
        if self.logit_bias is not None:
            outputs["logit_bias"] = self.logit_bias
        return outputs

    def blocks(self) -> list[nn.Module]:
        """Both towers' blocks, image tower first: what FSDP shards and torch.compile compiles one by one."""
        return [*self.visual.block_list(), *self.transformer.blocks()]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.visual.set_grad_checkpointing(enable)
        self.transformer.grad_checkpointing = enable

    def _check_pixels(self, pixels: Tensor) -> None:
        size = self.config.vision.image_size
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, size, size):
            raise value_error(
                "pixels",
                got=f"shape {tuple(pixels.shape)}",
                want=f"[n, 3, {size}, {size}]",
                fix="resize to model.config.vision.image_size, or create the model with that image_size",
            )
        if not pixels.is_floating_point():
            raise type_error(
                "pixels",
                got=pixels.dtype,
                want="normalised floats",
                fix="divide by 255 and normalise with .mean and .std",
            )
        wanted = next(self.visual.parameters()).dtype
        if pixels.dtype != wanted and autocast_dtype(pixels.device) is None:
            raise type_error("pixels", got=pixels.dtype, want=f"the model's dtype {wanted}", fix=f"pixels.to({wanted})")


def create_model(
    name: str,
    *,
    pretrained: str | Path | Mapping[str, Tensor] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> CLIP:
    """A named model, freshly initialised or loaded.

    name: one of `list_models()`. pretrained: a checkpoint file or a state dict (see `load_checkpoint`, strict).
    device: where to make it; the default device (also `with torch.device("meta")`) when None. dtype: of all parameters
    but the temperature and bias, which stay at least float32, as do BatchNorm's running statistics.
    overrides: configuration fields, dotted (**{"vision.patch_dropout": 0.5}) or flat where unambiguous
    (patch_dropout=0.5).

    ValueError for an unknown name or field, naming the nearest; FileNotFoundError for a missing checkpoint.
    """
    config = get_config(name).replace(overrides)
    with torch.device(device if device is not None else torch.get_default_device()):
        model = CLIP(config)
    if dtype is not None:
        _cast(model, dtype)
    if pretrained is not None:
        load_checkpoint(model, pretrained)
    return model


def _cast(model: CLIP, dtype: torch.dtype) -> None:
    if not dtype.is_floating_point:
        raise type_error("dtype", got=dtype, want="a floating-point dtype", fix="use torch.float32 or torch.bfloat16")
    model.to(dtype)
    wide = [scalar for scalar in (model.logit_scale, model.logit_bias) if scalar is not None]
    for value in (*wide, *running_statistics(model)):  # zeros and ones still, so nothing was rounded
        value.data = value.data.to(torch.promote_types(dtype, torch.float32))
    initialise_head(model.logit_scale, model.logit_bias, model.config)
