# SPDX-License-Identifier: Apache-2.0
"""The two ways to train a model: what a step is made of on each side, and the step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import clipkit
from bench.end_to_end.batches import Batch, make_batch
from bench.peers import import_peer
from clipkit.encoders.checkpoint import open_clip_config
from clipkit.encoders.zoo import get_config
from clipkit.train.config import OptimConfig
from clipkit.train.optimizers import build_optimizer
from clipkit.train.precision import Precision

OPTIM = OptimConfig(name="adamw", lr=5e-4, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-6)
"""open_clip's defaults for a ViT."""
OURS, PEER, PEER_FUSED, PEER_COMPILED = "clipkit", "open_clip", "open_clip, fused AdamW", "open_clip, fused, compiled"
OURS_COMPILED = "clipkit, compiled"
UNCOMPILED = {OURS_COMPILED: OURS, PEER_COMPILED: PEER_FUSED}
LARGEST_LOG_SCALE = math.log(100)
DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""Of the weights and pixels at each precision."""

Forward = Callable[..., dict[str, Tensor]]


class Side(ABC):
    """A model, its loss and its optimizer.

    `step` is the whole as its trainer runs it; the parts (`image`, `text`, `loss`, `update`) make the same step.
    """

    def __init__(self, name: str, model: Any, optimizer: torch.optim.Optimizer, precision: str, device: str) -> None:
        self.name, self.model, self.optimizer = name, model.train(), optimizer
        self.precision = Precision(precision, device)
        self.forward: Forward = model

    def step(self, batch: Batch) -> Tensor:
        """Train on a batch; its loss, detached."""
        self.optimizer.zero_grad()
        loss = self.whole(batch)
        loss.backward()
        self.update()
        return loss.detach()

    def update(self) -> None:
        """The optimizer and the clamp."""
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, LARGEST_LOG_SCALE)

    def set_rate(self, lr: float) -> None:
        """The learning rate of the next steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def decayed(self) -> int:
        """How many numbers the optimizer decays."""
        groups = self.optimizer.param_groups
        return sum(p.numel() for group in groups if group["weight_decay"] for p in group["params"])

    def image(self, batch: Batch) -> Tensor:
        """Unit-length image features."""
        with self.precision.encoding():
            return self.model.encode_image(batch.pixels, normalize=True)

    @abstractmethod
    def text(self, batch: Batch) -> Tensor:
        """Unit-length text features."""

    @abstractmethod
    def loss(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        """The loss of features and the multiplier."""

    @abstractmethod
    def whole(self, batch: Batch) -> Tensor:
        """The loss of a batch, as the trainer computes it."""


class Ours(Side):
    """This library's model, loss and optimizer."""

    def __init__(self, name: str, model: nn.Module, precision: str, device: str) -> None:
        super().__init__(name, model, build_optimizer(OPTIM, model, self.blocks(model)), precision, device)
        self._loss = clipkit.ClipLoss()

    @staticmethod
    def blocks(model: Any) -> list[nn.Module]:
        """What the trainer compiles one by one."""
        return list(model.blocks())

    def text(self, batch: Batch) -> Tensor:
        """Packed on the host, encoded on the device."""
        with self.precision.encoding():
            return self.model.encode_text(self._packed(batch), normalize=True)

    def loss(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        """In fp32, whatever the features are; outside autocast, as in the trainer."""
        return self._loss(image, text, scale)

    def whole(self, batch: Batch) -> Tensor:
        """Both towers, then the loss."""
        with self.precision.encoding():
            features = self.forward(batch.pixels, self._packed(batch))
        return self.loss(features["image_features"], features["text_features"], features["logit_scale"])

    def _packed(self, batch: Batch) -> Any:
        return self.model.pack(batch.host_tokens).to(batch.pixels.device, non_blocking=True)


class OpenClip(Side):
    """open_clip's model, loss and optimizer, as open_clip_train's main.py and train.py put them together."""

    def __init__(self, name: str, model: Any, precision: str, device: str, *, fused: bool) -> None:
        plain: list[nn.Parameter] = []
        decayed: list[nn.Parameter] = []
        for parameter_name, parameter in model.named_parameters():
            marked = any(word in parameter_name for word in ("bn", "ln", "bias", "logit_scale"))
            (plain if parameter.ndim < 2 or marked else decayed).append(parameter)
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": OPTIM.weight_decay}]
        how = {"fused": True} if fused else {}  # by default torch chooses: one tensor at a time on a CPU
        optimizer = torch.optim.AdamW(groups, lr=OPTIM.lr, betas=OPTIM.betas, eps=OPTIM.eps, **how)
        super().__init__(name, model, optimizer, precision, device)
        self._loss = open_clip().ClipLoss()

    def text(self, batch: Batch) -> Tensor:
        """Every position of the context."""
        with self.precision.encoding():
            return self.model.encode_text(batch.tokens, normalize=True)

    def loss(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        """Under autocast."""
        with self.precision.encoding():
            return self._loss(image, text, scale)

    def whole(self, batch: Batch) -> Tensor:
        """Towers and loss under one autocast."""
        with self.precision.encoding():
            features = self.forward(batch.pixels, batch.tokens)
            losses: Any = self._loss(**features, output_dict=True)
            return sum(losses.values())


class Workbench:
    """Makes the sides of a model and the batches that they train on."""

    def __init__(self, name: str, device: str) -> None:
        """ValueError where this library has no such model."""
        self.name, self.device, self.config = name, device, get_config(name)

    def batch(self, count: int, seed: int, dtype: torch.dtype = torch.float32) -> Batch:
        """See make_batch."""
        return make_batch(
            count,
            image_size=self.config.vision.image_size,
            context=self.config.text.context_length,
            vocab_size=self.config.text.vocab_size,
            seed=seed,
            device=self.device,
            dtype=dtype,
        )

    def initial_weights(self) -> dict[str, Tensor]:
        """Of open_clip's model where it imports and has one, else of ours."""
        torch.manual_seed(0)
        reason = self.no_peer()
        model = clipkit.create_model(self.name) if reason else self._peer_model()
        return {name: value.detach().clone() for name, value in model.state_dict().items()}

    def no_peer(self) -> str | None:
        """Why open_clip has no such model here; None where it has."""
        try:
            library = open_clip()
            if self.name not in library.list_models():
                open_clip_config(self.config)
            elif "timm_model_name" in library.get_model_config(self.name)["vision_cfg"]:
                import_peer("timm")
        except Exception as error:
            return f"open_clip has no such model here ({type(error).__name__}: {error})"
        return None

    def side(self, name: str, weights: dict[str, Tensor] | None, precision: str) -> Side:
        """The side called `name` (OURS, ...), with a copy of these weights, or with its own initial ones."""
        if name in (OURS, OURS_COMPILED):
            model = clipkit.create_model(self.name, device=self.device, dtype=DTYPES[precision], pretrained=weights)
            side: Side = Ours(name, model, precision, self.device)
            if name == OURS_COMPILED:
                for block in Ours.blocks(model):
                    block.compile()
            return side
        peer = self._peer_model()
        if weights is not None:
            peer.load_state_dict(weights)
        peer.to(self.device, DTYPES[precision])
        side = OpenClip(name, peer, precision, self.device, fused=name != PEER)
        if name == PEER_COMPILED:
            side.forward = torch.compile(peer)
        return side

    def _peer_model(self) -> Any:
        """open_clip's model of this name; of a name that only we have, its CLIP of the same configuration."""
        library = open_clip()
        if self.name in library.list_models():
            return library.create_model(self.name, output_dict=True)
        return library.model.CLIP(**open_clip_config(self.config), output_dict=True)


def open_clip() -> ModuleType:
    """The library."""
    return import_peer("open_clip")
