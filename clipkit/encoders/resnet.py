# SPDX-License-Identifier: Apache-2.0
"""CLIP's modified ResNet (Radford et al. 2021, section 2.4), with open_clip's parameter names.

Against the usual ResNet: three 3 x 3 convolutions in front instead of one of 7 x 7, an average pool before each
convolution that would have had a stride, and attention instead of the mean over positions at the end.
"""

from __future__ import annotations

import contextlib
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.encoders.attention import dense_attention
from clipkit.encoders.batch_norm import BatchNorm, frozen_statistics
from clipkit.encoders.config import ResNetConfig
from clipkit.encoders.transformer import Contexts, run_block

EXPANSION = 4  # channels that leave a bottleneck, over those inside it


def convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Side kept (over the stride), no bias: the norm behind it has one."""
    return nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)


class Bottleneck(nn.Module):
    """relu(shortcut + narrow, 3 x 3, widen); with stride 2, both branches average before their last convolution."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        channels_out = width * EXPANSION
        self.stride = stride
        self.conv1, self.bn1 = convolution(channels_in, width, 1), BatchNorm(width)
        self.conv2, self.bn2 = convolution(width, width, 3), BatchNorm(width)
        self.conv3, self.bn3 = convolution(width, channels_out, 1), BatchNorm(channels_out)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(convolution(channels_in, channels_out, 1), BatchNorm(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels_in, h, w] -> [n, 4 width, h / stride, w / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self._pool(y)))
        shortcut = x if self.downsample is None else self.downsample(self._pool(x))
        return F.relu(y + shortcut)

    def _pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(nn.Module):
    """One attention layer over all positions and their mean; only the mean asks, so only its query is computed."""

    def __init__(self, positions: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(positions + 1, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[n, width, h, w] -> [n, embed_dim]."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        split = (self.heads, tokens.shape[-1] // self.heads)
        query = self.q_proj(tokens[:, :1]).unflatten(-1, split)
        key, value = self.k_proj(tokens).unflatten(-1, split), self.v_proj(tokens).unflatten(-1, split)
        return self.c_proj(dense_attention(query, key, value).flatten(1))


class ModifiedResNet(nn.Module):
    """Stem, four stages of bottlenecks, attention pool. The side shrinks 32-fold, the width grows 32-fold.

    In training every BatchNorm uses the statistics of the pictures that this process encodes at once: a micro-batch.
    """

    def __init__(self, config: ResNetConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.grad_checkpointing = False
        self.conv1, self.bn1 = convolution(3, width // 2, 3, stride=2), BatchNorm(width // 2)
        self.conv2, self.bn2 = convolution(width // 2, width // 2, 3), BatchNorm(width // 2)
        self.conv3, self.bn3 = convolution(width // 2, width, 3), BatchNorm(width)
        first, second, third, fourth = config.layers
        self.layer1 = _stage(width, width, first, stride=1)
        self.layer2 = _stage(width * 4, width * 2, second, stride=2)
        self.layer3 = _stage(width * 8, width * 4, third, stride=2)
        self.layer4 = _stage(width * 16, width * 8, fourth, stride=2)
        self.attnpool = AttentionPool(config.grid**2, width * 32, config.heads, embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n, embed_dim], not normalised."""
        x = self._stem(pixels)
        for block in self.bottlenecks():
            x = run_block(block, (x,), self.grad_checkpointing, _once_counted(block))
        return self.attnpool(x)

    def bottlenecks(self) -> list[Bottleneck]:
        """First to last."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return [cast(Bottleneck, block) for stage in stages for block in stage]

    def block_list(self) -> list[nn.Module]:
        """The bottlenecks, first to last, and the attention pool."""
        return [*self.bottlenecks(), self.attnpool]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each bottleneck in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def _stem(self, pixels: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n, width, H / 4, W / 4]."""
        x = F.relu(self.bn1(self.conv1(pixels)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return F.avg_pool2d(x, 2)


def _stage(channels_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Bottleneck(width * EXPANSION, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(channels_in, width, stride), *rest)


def _once_counted(block: nn.Module) -> Contexts:
    """A recomputed block sees its batch again; the running statistics have seen it already."""
    return lambda: (contextlib.nullcontext(), frozen_statistics(block))
