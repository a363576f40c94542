# SPDX-License-Identifier: Apache-2.0
"""CLIP's ResNet equals open_clip's for the same weights, and each batch enters its running statistics once."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

from clipkit.encoders import (
    CLIP,
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    create_model,
    export_state_dict,
    load_checkpoint,
    open_clip_config,
)
from clipkit.encoders.batch_norm import BatchNorm, frozen_statistics, running_statistics
from tests.encoders.naive import padded_tokens

TINY = CLIPConfig(
    16,
    ResNetConfig(image_size=64, layers=(1, 2, 1, 1), width=8, head_width=32),
    TextConfig(context_length=24, vocab_size=600, width=24, heads=2, layers=1),
)
TOKENS = padded_tokens([8, 24, 3, 17], 24)


def tiny_resnet(dtype: torch.dtype = torch.float64, seed: int = 0) -> CLIP:
    """Every parameter and statistic random: at the published start the residual branches are switched off."""
    torch.manual_seed(seed)
    model = CLIP(TINY)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    for value in running_statistics(model):
        value += 0.2 * torch.rand_like(value)
    return model.to(dtype)


def pictures(count: int = 4, size: int = 64, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(count))


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def assert_equal_states(ours: nn.Module, theirs: nn.Module, tolerance: float) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    ("name", "parameters", "of_the_image_tower"),
    [
        ("RN50", 102_007_137, 38_316_896),
        ("RN101", 119_688_033, 56_259_936),
        ("RN50x4", 178_300_601, 87_137_080),
        ("RN50x16", 290_979_217, 167_328_912),
        ("RN50x64", 623_258_305, 420_380_352),
    ],
)
def test_named_models_have_the_published_sizes(name, parameters, of_the_image_tower):
    model = create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.visual.parameters()) == of_the_image_tower


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_features_gradients_and_statistics_equal_open_clips(open_clip, training):
    model = tiny_resnet().train(training)
    peer = open_clip.CLIP(**open_clip_config(TINY)).double().train(training)
    peer.load_state_dict(export_state_dict(model), strict=True)
    pixels = pictures()
    for image, text, scale in (tuple(model(pixels, TOKENS).values()), peer(pixels, TOKENS)):
        torch.nn.functional.cross_entropy(scale * image @ text.T, torch.arange(4)).backward()
    torch.testing.assert_close(model.encode_image(pixels), peer.encode_image(pixels), rtol=1e-11, atol=1e-12)
    theirs = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-9 or "k_proj.bias" in name, f"{name}: nothing is compared"
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-8, atol=1e-11, msg=name)
    assert_equal_states(model, peer, 1e-12)


def test_rn50_equals_open_clips_in_float32(open_clip):
    """The real one, its residual branches switched on; the text tower cut short, it is compared elsewhere."""
    overrides = {"text.layers": 1, "text.vocab_size": 600, "vision.image_size": 64}
    model = create_model("RN50", **overrides)
    for block in model.visual.bottlenecks():
        nn.init.normal_(block.bn3.weight, std=0.3)
    peer = open_clip.CLIP(**open_clip_config(model.config))
    report = load_checkpoint(copy.deepcopy(model), peer.state_dict())
    assert (report.layout, len(report.loaded)) == ("open_clip CLIP", len(peer.state_dict()))
    peer.load_state_dict(export_state_dict(model), strict=True)
    pixels = pictures(3, dtype=torch.float32)
    for training in (True, False):
        ours, theirs = model.train(training).encode_image(pixels), peer.train(training).encode_image(pixels)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        ours.square().sum().backward()
        theirs.square().sum().backward()
    expected = dict(peer.named_parameters())
    for name, parameter in model.visual.named_parameters(prefix="visual"):
        if not name.endswith("k_proj.bias"):  # zero but for rounding: it moves every logit of a row alike
            gradient = expected[name].grad
            assert (parameter.grad - gradient).norm() <= 1e-3 * gradient.norm(), name
    assert_equal_states(model, peer, 1e-5)


def test_starting_values_are_the_published_ones(open_clip):
    torch.manual_seed(0)
    config = TINY.replace({"vision.width": 32})
    ours, theirs = CLIP(config), dict(open_clip.CLIP(**open_clip_config(config)).named_parameters())
    for name, parameter in ours.visual.named_parameters(prefix="visual"):
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(theirs[name].std().item(), rel=0.1), name
        elif name.endswith("weight"):
            assert torch.equal(parameter, theirs[name]), name
    assert all(not block.bn3.weight.any() for block in ours.visual.bottlenecks())
    with torch.device("meta"):
        later = CLIP(config)
    assert all(value.is_meta for value in later.state_dict().values())
    later.to_empty(device="cpu")
    later.init_weights()
    for name, value in later.named_buffers():
        assert torch.equal(value, torch.ones_like(value) if "var" in name else torch.zeros_like(value)), name


@pytest.mark.parametrize("custom_text", [False, True])
def test_weights_and_statistics_travel_both_ways(open_clip, custom_text):
    model, back = tiny_resnet(), tiny_resnet(seed=1)
    model.encode_image(pictures())
    layout, kind = ("open_clip_custom_text", "CustomTextCLIP") if custom_text else ("open_clip", "CLIP")
    peer = getattr(open_clip, kind)(**open_clip_config(TINY)).double()
    peer.load_state_dict(export_state_dict(model, layout), strict=True)
    report = load_checkpoint(back, peer.state_dict())
    assert len(report.loaded) == len(peer.state_dict())
    assert_equal_states(back, model, 0.0)
    numbers = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    assert load_checkpoint(back, {**export_state_dict(model), **numbers}).layout == "OpenAI CLIP"
    state = export_state_dict(model)
    del state["visual.bn1.running_var"]
    with pytest.raises(ValueError, match=r"1 missing \(visual\.bn1\.running_var\)"):
        load_checkpoint(back, state)
    with pytest.raises(ValueError, match="a ResNet"):
        export_state_dict(model, "transformers")


def test_positions_of_the_pool_are_resampled_to_another_picture_size():
    state = export_state_dict(tiny_resnet())
    target = CLIP(TINY.replace({"vision.image_size": 96})).double()
    report = load_checkpoint(target, state, resize_positions=True)
    assert report.resized == ("visual.attnpool.positional_embedding: (5, 256) -> (10, 256)",)
    assert target.eval().encode_image(pictures(2, 96)).isfinite().all()


def test_recomputed_blocks_enter_the_running_statistics_once():
    kept, recomputed = tiny_resnet(), tiny_resnet()
    recomputed.set_grad_checkpointing(True)
    for model in (kept, recomputed):
        model.encode_image(pictures()).square().sum().backward()
    assert kept.visual.layer2[1].bn2.num_batches_tracked == 1
    assert_equal_states(recomputed, kept, 0.0)
    for (name, parameter), other in zip(kept.visual.named_parameters(), recomputed.visual.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name


def test_frozen_statistics_change_no_output_and_no_buffer_and_thaw_again():
    model = tiny_resnet()
    expected = copy.deepcopy(model).encode_image(pictures())
    before = buffers(model)
    with frozen_statistics(model):
        assert torch.equal(model.encode_image(pictures()), expected)
    with contextlib.suppress(ValueError), frozen_statistics(model):
        model.encode_image(pictures(size=32))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    model.encode_image(pictures())
    assert all(not torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_blocks_compile_one_by_one_with_the_same_result_and_statistics():
    plain, compiled = tiny_resnet(), tiny_resnet()
    for block in compiled.visual.block_list():
        block.compile(backend="eager")
    expected = plain.encode_image(pictures())
    torch.testing.assert_close(compiled.encode_image(pictures()), expected, rtol=1e-12, atol=1e-12)
    with frozen_statistics(compiled):
        torch.testing.assert_close(compiled.encode_image(pictures()), expected, rtol=1e-12, atol=1e-12)
    assert_equal_states(compiled, plain, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_stay_wide_under_16_bit_weights_and_under_autocast(dtype):
    narrow = create_model("resnet-tiny-64px", dtype=dtype)
    assert {value.dtype for value in running_statistics(narrow)} == {torch.float32}
    assert narrow.visual.bn1.weight.dtype == dtype
    wide = create_model("resnet-tiny-64px", pretrained=export_state_dict(narrow))
    pixels = pictures(8, dtype=torch.float32)
    for training in (True, False):
        for model in (narrow, wide):
            model.train(training)
        expected = wide.encode_image(pixels, normalize=True)
        features = narrow.encode_image(pixels.to(dtype), normalize=True)
        with torch.autocast("cpu", dtype=dtype), frozen_statistics(wide):
            mixed = wide.encode_image(pixels, normalize=True)
        assert features.dtype == dtype
        for found in (features, mixed):
            assert (found.float() * expected).sum(-1).min() > 0.995
        (features.float() * expected.detach()).sum().backward()
    assert narrow.visual.bn1.weight.grad.dtype == dtype
    assert create_model("resnet-tiny-64px", dtype=torch.float64).visual.bn1.running_var.dtype == torch.float64


@pytest.mark.parametrize("rows", [0, 1])
def test_a_channel_with_less_than_two_values_comes_out_as_the_bias(rows):
    norm = BatchNorm(5).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(rows, 5, 1, 1, dtype=torch.float64, requires_grad=True)
    y = norm(x)
    assert torch.equal(y.detach(), norm.bias.detach()[None, :, None, None].expand_as(y))
    y.sum().backward()
    assert not x.grad.any()
    assert not norm.weight.grad.any()
    assert torch.equal(norm.bias.grad, torch.full((5,), float(rows), dtype=torch.float64))
    assert torch.equal(norm.running_var, torch.ones(5, dtype=torch.float64))
    assert torch.equal(norm.running_mean, torch.zeros(5, dtype=torch.float64))
    assert norm.num_batches_tracked == 1
    assert norm(torch.full((1, 5, 1, 1), torch.nan, dtype=torch.float64)).isnan().all()
    narrow = norm.bfloat16()
    assert narrow(torch.ones(1, 5, 1, 1, dtype=torch.bfloat16)).dtype == torch.bfloat16
    expected = nn.BatchNorm2d(5).eval()(torch.ones(1, 5, 1, 1))
    assert torch.equal(BatchNorm(5).eval()(torch.ones(1, 5, 1, 1)), expected)


def test_a_batch_of_none_gives_gradients_of_zero_everywhere():
    model = tiny_resnet()
    outputs = model(pictures(0), TOKENS[:0])
    (outputs["image_features"].sum() + outputs["text_features"].sum() + 0 * outputs["logit_scale"]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_evaluation_does_not_depend_on_the_neighbours_and_training_does():
    model = tiny_resnet().eval()
    pixels = pictures(5)
    alone = torch.cat([model.encode_image(picture.unsqueeze(0)) for picture in pixels])
    torch.testing.assert_close(model.encode_image(pixels), alone, rtol=0, atol=1e-12)
    model.train()
    assert (model.encode_image(pixels)[:2] - model.encode_image(pixels[:2])).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"vision.layers": [1, 2, 3]}, r"vision.layers: got \(1, 2, 3\); want four whole numbers"),
        ({"vision.layers": [1, 2, 0, 1]}, "vision.layers: got"),
        ({"vision.image_size": 100}, "vision.image_size: got 100; want a multiple of total stride = 32"),
        ({"vision.width": 9}, "vision.width: got 9; want a multiple of the stem's halving = 2"),
        ({"vision.head_width": 60}, r"vision.width \* 32: got 512; want a multiple of head_width = 60"),
        ({"vision.patch_size": 16}, "'vision.patch_size'; want a field of the model"),
    ],
)
def test_wrong_sizes_raise(overrides, said):
    with pytest.raises(ValueError, match=said):
        create_model("resnet-tiny-64px", device="meta", **overrides)
