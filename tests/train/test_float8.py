# SPDX-License-Identifier: Apache-2.0
"""FP8 linear layers: which ones, that they compute what they should, and clear words where they cannot."""

import copy
import sys

import pytest
import torch

from clipkit.encoders import create_model
from clipkit.train.config import parse_config
from clipkit.train.float8 import convert_to_float8, float8_layers
from tests.encoders.naive import padded_tokens

CPU = torch.device("cpu")
INNER = ("attn.out_proj", "mlp.c_fc", "mlp.c_proj")


def small():
    return create_model("vit-tiny-32px", **{"vision.layers": 4, "text.layers": 3, "vocab_size": 600})


def test_inner_blocks_layers_are_chosen_and_no_others():
    wanted = [f"visual.transformer.resblocks.{block}.{name}" for block in (1, 2) for name in INNER]
    wanted += [f"transformer.resblocks.1.{name}" for name in INNER]
    assert sorted(float8_layers(small())) == sorted(wanted)


def test_an_eva_towers_layers_are_chosen_where_they_are_called():
    model = create_model("eva-tiny-32px", **{"vision.layers": 3, "vision.hidden": 320, "text.layers": 2})
    names = ("attn.proj", "mlp.w1", "mlp.w2", "mlp.w3")
    assert sorted(float8_layers(model)) == sorted(f"visual.blocks.1.{name}" for name in names)


def test_sides_that_are_no_multiple_of_16_stay():
    model = create_model("vit-tiny-32px", **{"vision.mlp_ratio": 2.0625, "text.layers": 2})  # hidden 264
    assert {name.rpartition("resblocks.")[2][2:] for name in float8_layers(model)} == {"attn.out_proj"}


def test_converted_layers_are_close_and_names_stay():
    pytest.importorskip("torchao.float8", reason="torchao is not installed")
    torch.manual_seed(0)
    model = small()
    converted = copy.deepcopy(model)
    names = convert_to_float8(converted, CPU, emulate=True)
    assert {name for name, layer in converted.named_modules() if type(layer).__name__ == "Float8Linear"} == set(names)
    assert list(converted.state_dict()) == list(model.state_dict())
    pixels, tokens = torch.randn(5, 3, 32, 32), padded_tokens([3, 9, 24, 1, 7], 77)
    results = []
    for one in (model, converted):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = one(pixels, tokens)
        features = torch.cat([outputs["image_features"], outputs["text_features"]]).float()
        (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
        results.append([features, *(one.get_parameter(f"{name}.weight").grad for name in names)])
    for exact, found in zip(*results, strict=True):
        error = (found - exact).norm() / exact.norm()
        assert 0 < error < 0.15  # e4m3 has three bits behind the point, e5m2 two: half a unit is 6 and 12 %


def test_a_device_without_fp8_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"train\.fp8: got a cpu device; want a GPU of compute capability 8\.9"):
        convert_to_float8(small(), CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    with pytest.raises(ValueError, match=r"train\.fp8: got capability 8\.0; want a GPU"):
        convert_to_float8(small(), torch.device("cuda"))


def test_missing_torchao_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ValueError, match=r'train\.fp8: got no torchao .*pip install "clipkit-torch\[fp8\]"'):
        convert_to_float8(small(), CPU, emulate=True)


def test_fp8_wants_16_bit_around_it():
    tree = {"model": {"name": "vit-tiny-32px"}, "data": {"train": "x"}, "train": {"global_batch": 8, "steps": 1}}
    tree["train"]["fp8"] = True
    with pytest.raises(ValueError, match=r"train\.precision: got fp32; want bf16 or fp16 with train\.fp8"):
        parse_config(tree)
    tree["train"]["precision"] = "bf16"
    assert parse_config(tree).train.fp8
