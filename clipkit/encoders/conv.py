# SPDX-License-Identifier: Apache-2.0
"""A small convolutional tower, quick on a CPU: depthwise blocks computed channels-last."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipkit.encoders.config import ConvConfig
from clipkit.encoders.transformer import LayerNorm, activation, run_block


class DepthwiseBlock(nn.Module):
    """x + pointwise(activation(pointwise(norm(depthwise x)))) on [n, width, h, w], channels-last in memory."""

    def __init__(self, width: int, config: ConvConfig) -> None:
        super().__init__()
        hidden = int(width * config.mlp_ratio)
        self.depthwise = nn.Conv2d(width, width, config.kernel_size, padding=config.kernel_size // 2, groups=width)
        self.norm = LayerNorm(width, eps=config.norm_eps)
        self.expand = nn.Linear(width, hidden)
        self.activation = activation(config.activation)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, width, h, w] -> the same."""
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.contract(self.activation(self.expand(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """LayerNorm over channels, then a strided convolution."""

    def __init__(self, width_in: int, width_out: int, config: ConvConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(width_in, eps=config.norm_eps)
        self.reduce = nn.Conv2d(width_in, width_out, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[n, width_in, h, w] -> [n, width_out, h / 2, w / 2]."""
        return self.reduce(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class ConvTower(nn.Module):
    """Stem, stages of depthwise blocks, mean over positions, LayerNorm, projection."""

    def __init__(self, config: ConvConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
        padding = (config.stem_kernel - config.stem_stride) // 2
        self.stem = nn.Conv2d(3, config.widths[0], config.stem_kernel, stride=config.stem_stride, padding=padding)
        layers: list[nn.Module] = []
        previous = config.widths[0]
        for width, depth in zip(config.widths, config.depths, strict=True):
            if layers:
                layers.append(Downsample(previous, width, config))
            layers.extend(DepthwiseBlock(width, config) for _ in range(depth))
            previous = width
        self.layers = nn.ModuleList(layers)
        self.norm = LayerNorm(previous, eps=config.norm_eps)
        self.proj = nn.Parameter(torch.empty(previous, embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n, embed_dim], not normalised."""
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        for layer in self.layers:
            x = run_block(layer, (x,), self.grad_checkpointing)
        return self.norm(x.mean(dim=(2, 3))) @ self.proj

    def block_list(self) -> list[nn.Module]:
        """The depthwise blocks and the layers between the stages, first to last."""
        return list(self.layers)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable
