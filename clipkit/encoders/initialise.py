# SPDX-License-Identifier: Apache-2.0
"""Starting values. Every tensor's distribution is written here, none is left to a module's default."""

from __future__ import annotations

import math

from torch import Tensor, nn

from clipkit.encoders.config import CLIPConfig
from clipkit.encoders.conv import ConvTower, DepthwiseBlock, Downsample
from clipkit.encoders.eva import EvaBlock, EvaMLP, EvaTower
from clipkit.encoders.resnet import ModifiedResNet
from clipkit.encoders.text import TextTower
from clipkit.encoders.transformer import ResidualBlock
from clipkit.encoders.vision import VisionTransformer


def initialise_text(tower: TextTower) -> None:
    """CLIP's text tower (Radford et al. 2021 and OpenAI's code); D = width, L = layers.

    Token embedding N(0, 0.02), positions N(0, 0.01), queries/keys/values N(0, D^-1/2), both residual projections
    N(0, D^-1/2 (2L)^-1/2), first MLP layer N(0, (2D)^-1/2), final projection N(0, D^-1/2), biases 0, norms 1 and 0.
    """
    width, layers = tower.ln_final.normalized_shape[0], len(tower.transformer.resblocks)
    residual = (2 * layers * width) ** -0.5
    nn.init.normal_(tower.token_embedding.weight, std=0.02)
    nn.init.normal_(tower.positional_embedding, std=0.01)
    for block in tower.transformer.blocks():
        _block(block, qkv=width**-0.5, out=residual, fc=(2 * width) ** -0.5, proj=residual)
    _norm(tower.ln_final)
    nn.init.normal_(tower.text_projection, std=width**-0.5)


def initialise_vision(tower: VisionTransformer) -> None:
    """CLIP's vision tower, whose inner layers OpenAI left at PyTorch's defaults: the same variances, drawn normal.

    Class token, positions and final projection N(0, D^-1/2); queries/keys/values N(0, (2D)^-1/2); every other matrix
    N(0, (3 fan_in)^-1/2); biases 0, norms 1 and 0.
    """
    width = tower.config.width
    _fan_in(tower.conv1)
    nn.init.normal_(tower.class_embedding, std=width**-0.5)
    nn.init.normal_(tower.positional_embedding, std=width**-0.5)
    for block in tower.transformer.blocks():
        hidden = block.mlp.c_proj.in_features
        third = (3 * width) ** -0.5
        _block(block, qkv=(2 * width) ** -0.5, out=third, fc=third, proj=(3 * hidden) ** -0.5)
    for norm in (tower.ln_pre, tower.ln_post):
        _norm(norm)
    nn.init.normal_(tower.proj, std=width**-0.5)


def initialise_eva(tower: EvaTower) -> None:
    """EVA-CLIP's vision tower as its publishers start it, before a pre-trained one is read in.

    Matrices, class token and positions N(0, 0.02), truncated at two units; block l (from 1) divides the last layer of
    each branch by sqrt(2 l), so that the sum of all branches keeps its size; the head is a thousandth of that, so that
    all features start nearly alike; patch kernels N(0, (3 fan_in)^-1/2); biases 0, norms 1 and 0.
    """
    _fan_in(tower.patch_embed.proj)
    for table in (tower.cls_token, tower.pos_embed):
        _truncated(table)
    for module in tower.modules():
        if isinstance(module, nn.Linear):
            _truncated(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        _norm(module)
    for number, block in enumerate(tower.block_list(), start=1):
        assert isinstance(block, EvaBlock)
        nn.init.zeros_(block.attn.q_bias)
        nn.init.zeros_(block.attn.v_bias)
        last = block.mlp.fc2 if isinstance(block.mlp, EvaMLP) else block.mlp.w3
        for layer in (block.attn.proj, last):
            layer.weight.div_(math.sqrt(2 * number))
    tower.head.weight.mul_(1e-3)


def initialise_conv(tower: ConvTower) -> None:
    """Every matrix N(0, (3 fan_in)^-1/2) but the last of a block, which is 0: each block starts as the identity."""
    _fan_in(tower.stem)
    for layer in tower.layers:
        if isinstance(layer, DepthwiseBlock):
            _fan_in(layer.depthwise)
            _fan_in(layer.expand)
            _layer(layer.contract, 0.0)
            _norm(layer.norm)
        elif isinstance(layer, Downsample):
            _fan_in(layer.reduce)
            _norm(layer.norm)
    _norm(tower.norm)
    nn.init.normal_(tower.proj, std=tower.proj.shape[0] ** -0.5)


def initialise_resnet(tower: ModifiedResNet) -> None:
    """CLIP's modified ResNet (OpenAI's code): D = channels of the last map.

    Convolutions as PyTorch's default (the same variance, drawn normal); the last norm of each bottleneck 0, so that it
    starts as its shortcut; attention pool's matrices and positions N(0, D^-1/2); biases 0, other norms 1 and 0.
    """
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            _fan_in(module)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            _norm(module)
    for block in tower.bottlenecks():
        nn.init.zeros_(block.bn3.weight)
    pool = tower.attnpool
    std = pool.c_proj.in_features**-0.5
    nn.init.normal_(pool.positional_embedding, std=std)
    for projection in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
        _layer(projection, std)


def initialise_head(logit_scale: nn.Parameter, logit_bias: nn.Parameter | None, config: CLIPConfig) -> None:
    """The scalars of the configuration."""
    nn.init.constant_(logit_scale, config.init_logit_scale)
    if logit_bias is not None and config.init_logit_bias is not None:
        nn.init.constant_(logit_bias, config.init_logit_bias)


def _block(block: ResidualBlock, *, qkv: float, out: float, fc: float, proj: float) -> None:
    nn.init.normal_(block.attn.in_proj_weight, std=qkv)
    nn.init.zeros_(block.attn.in_proj_bias)
    _layer(block.attn.out_proj, out)
    _layer(block.mlp.c_fc, fc)
    _layer(block.mlp.c_proj, proj)
    _norm(block.ln_1)
    _norm(block.ln_2)


def _fan_in(layer: nn.Linear | nn.Conv2d) -> None:
    _layer(layer, (3 * math.prod(layer.weight.shape[1:])) ** -0.5)


def _layer(layer: nn.Linear | nn.Conv2d, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _truncated(tensor: Tensor) -> None:
    nn.init.trunc_normal_(tensor, std=0.02)


def _norm(norm: nn.Module) -> None:
    if isinstance(norm, (nn.LayerNorm, nn.BatchNorm2d)):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
