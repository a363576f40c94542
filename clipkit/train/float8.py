# SPDX-License-Identifier: Apache-2.0
"""The blocks' linear layers in FP8, by torchao: weights and checkpoints stay what they are, products get cheaper.

Both operands of a product are scaled per tensor at each step and rounded to e4m3 (gradients to e5m2) (Micikevicius et
al. 2022, "FP8 formats for deep learning"). Each tower's first and last block, embeddings, norms, heads and projections
are left in 16 bit; so are queries, keys and values, whose weights are raw parameters here (as in
torch.nn.MultiheadAttention) or layers that their attention reads the weight of: what is converted is 9/12 of a block's
matrix products.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from clipkit.encoders import CLIP
from clipkit.errors import value_error

_MULTIPLE = 16  # of both sides of a weight, for the hardware's FP8 products
_ARGUMENT = "train.fp8"


def convert_to_float8(model: CLIP, device: torch.device, *, emulate: bool = False) -> list[str]:
    """Replace the large linear layers inside the blocks by torchao's, in place; returns their names.

    Rows need not be a multiple of 16 (packed text never is): torchao pads them in the products for gradients.
    emulate: round to FP8 but multiply in the operands' own precision, on any device: for tests.

    Raises:
        ValueError: no FP8 products on this device (compute capability 8.9 or newer), torchao is missing, or no layer
            fits.
    """
    if not emulate:
        _check_device(device)
    float8 = _torchao()
    chosen = float8_layers(model)
    if not chosen:
        raise value_error(
            _ARGUMENT,
            got="a model without such a layer",
            want=f"towers of three blocks or more, with linear layers of multiples of {_MULTIPLE}",
            fix=f"{_ARGUMENT}=false",
        )
    converted = {id(model.get_submodule(name)) for name in chosen}
    float8.convert_to_float8_training(
        model,
        module_filter_fn=lambda layer, name: id(layer) in converted,
        config=float8.Float8LinearConfig(pad_inner_dim=True, emulate=emulate),
    )
    return chosen


def float8_layers(model: CLIP) -> list[str]:
    """Names of the linear layers inside the inner blocks of each tower whose sides are multiples of 16."""
    blocks = model.blocks()
    pictures = len(blocks) - len(model.transformer.blocks())
    inner = [*blocks[:pictures][1:-1], *blocks[pictures:][1:-1]]
    within = {id(layer) for block in inner for layer in block.modules() if _fits(layer)}
    return [name for name, layer in model.named_modules() if id(layer) in within]


def _fits(layer: nn.Module) -> bool:
    # a layer without a bias is not called: EVA's attention multiplies by its weight, and adds biases of its own
    if type(layer) is not nn.Linear or layer.bias is None:
        return False
    return not (layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE)


def _check_device(device: torch.device) -> None:
    want, fix = "a GPU of compute capability 8.9 or newer (Ada, Hopper, Blackwell)", f"{_ARGUMENT}=false"
    if device.type != "cuda":
        raise value_error(_ARGUMENT, got=f"a {device.type} device", want=want, fix=fix)
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        raise value_error(_ARGUMENT, got="capability {}.{}".format(*capability), want=want, fix=fix)


def _torchao() -> Any:
    try:
        return importlib.import_module("torchao.float8")
    except ImportError as error:
        raise value_error(
            _ARGUMENT, got=f"no torchao ({error})", want="torchao", fix='pip install "clipkit-torch[fp8]"'
        ) from error
