# SPDX-License-Identifier: Apache-2.0
"""FP8 linear layers on a card: packed text of any number of tokens, forward and backward, close to bf16."""

import copy

import pytest
import torch

from clipkit.encoders import create_model
from clipkit.train.float8 import convert_to_float8
from tests.encoders.naive import padded_tokens


def test_fp8_towers_are_close_to_bf16():
    pytest.importorskip("torchao.float8", reason="torchao is not installed")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")
    model = create_model("vit-small-32px", vocab_size=600, device="cuda")
    converted = copy.deepcopy(model)
    names = convert_to_float8(converted, torch.device("cuda"))
    pixels, tokens = torch.randn(5, 3, 32, 32, device="cuda"), padded_tokens([3, 9, 24, 1, 6], 77).cuda()
    results = []
    for one in (model, converted):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            outputs = one(pixels, tokens)
        features = torch.cat([outputs["image_features"], outputs["text_features"]]).float()
        (features * torch.linspace(-1, 1, features.numel(), device="cuda").view_as(features)).sum().backward()
        results.append([features, *(one.get_parameter(f"{name}.weight").grad for name in names)])
    for exact, found in zip(*results, strict=True):
        assert (found - exact).norm() < 0.2 * exact.norm()
