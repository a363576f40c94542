# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: every wrapper and layout is recognised; what does not fit is named, and nothing is half written."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from clipkit.encoders import create_model, export_state_dict, load_checkpoint
from tests.encoders.naive import padded_tokens, tiny_model


def same_parameters(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


def with_prefix(state, prefix):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda s: with_prefix(s, "module."),
        lambda s: with_prefix(s, "_orig_mod."),
        lambda s: with_prefix(s, "module._orig_mod."),
        lambda s: {"epoch": 1, "state_dict": with_prefix(s, "module."), "optimizer": {"state": {}}},
        lambda s: {"step": 2, "model": s},
    ],
    ids=["plain", "ddp", "compiled", "both", "open_clip training", "model"],
)
def test_wrappers_are_taken_off(wrap):
    source, target = tiny_model(), tiny_model(seed=1)
    report = load_checkpoint(target, wrap(export_state_dict(source)))
    assert same_parameters(source, target)
    assert (report.layout, report.missing, report.unexpected) == ("open_clip CLIP", (), ())
    assert str(report) == f"open_clip CLIP: {len(report.loaded)} loaded"


def test_openais_state_dict_is_recognised_and_cast():
    source, target = tiny_model(), tiny_model(torch.float32, seed=1)
    numbers = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    half = {name: value.half() for name, value in export_state_dict(source).items()}
    report = load_checkpoint(target, {**half, **numbers})
    assert report.layout == "OpenAI CLIP"
    assert same_parameters(source.half().float(), target)


@pytest.mark.parametrize("name", ["vit-tiny-32px", "conv-tiny-32px"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_travel_both_ways(name, suffix, tmp_path):
    source = create_model(name)
    path = tmp_path / f"model{suffix}"
    state = export_state_dict(source, "clipkit")
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    target = create_model(name, pretrained=path)
    assert same_parameters(source, target)


def test_a_scalar_may_have_one_dimension():
    state = {**export_state_dict(tiny_model()), "logit_scale": torch.tensor([3.0])}
    target = tiny_model(seed=1)
    load_checkpoint(target, state)
    assert target.logit_scale.item() == 3.0
    assert target.logit_scale.shape == ()


def test_strict_names_every_gap_and_leaves_the_model_alone():
    target = tiny_model(seed=1)
    before = tiny_model(seed=1)
    state = export_state_dict(tiny_model())
    del state["ln_final.bias"]
    state["text_projection"] = torch.zeros(3, 3)
    state["visual.extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match="checkpoint: got a state dict") as caught:
        load_checkpoint(target, state)
    for said in ("1 missing (ln_final.bias)", "1 unexpected (visual.extra)", "(text_projection: (3, 3) -> (24, 16))"):
        assert said in str(caught.value)
    assert same_parameters(target, before)
    report = load_checkpoint(target, state, strict=False)
    assert report.missing == ("ln_final.bias",)
    assert report.mismatched == ("text_projection: (3, 3) -> (24, 16)",)
    assert torch.equal(target.visual.proj, state["visual.proj"])
    assert torch.equal(target.text_projection, before.text_projection)


def test_another_picture_size_is_refused_until_resizing_is_asked_for():
    state = export_state_dict(tiny_model())
    target = tiny_model(seed=1, **{"vision.image_size": 32, "text.context_length": 20})
    with pytest.raises(ValueError, match="resize_positions=True adapts"):
        load_checkpoint(target, state)
    report = load_checkpoint(target, state, resize_positions=True)
    assert report.resized == (
        "visual.positional_embedding: (17, 32) -> (65, 32)",
        "positional_embedding: (24, 24) -> (20, 24)",
    )
    tokens = padded_tokens([4, 20], 20)
    torch.testing.assert_close(target.encode_text(tokens), tiny_model().encode_text(tokens), rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_with_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "trap.pt"
    torch.save({"state_dict": Trap()}, path)
    with pytest.raises(ValueError, match=r"checkpoint: got trap.pt: .*; want a file of tensors"):
        load_checkpoint(tiny_model(), path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="want a file of tensors"):
        load_checkpoint(tiny_model(), path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt", "empty.pt"])
def test_a_broken_file_is_named(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"" if name == "empty.pt" else b"not a checkpoint at all")
    with pytest.raises(ValueError, match=f"checkpoint: got {name}"):
        load_checkpoint(tiny_model(), path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_torchscript_file_says_how_to_convert_it(tmp_path):
    path = tmp_path / "scripted.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(ValueError, match=r"torch\.jit\.load"):
        load_checkpoint(tiny_model(), path)


def test_what_is_no_clip_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tensors layer\.weight; want a CLIP in the layout of"):
        load_checkpoint(tiny_model(), {"layer.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="tensors none"):
        load_checkpoint(tiny_model(), {})
    with pytest.raises(FileNotFoundError, match="laion2b_s34b_b79k is not a file"):
        create_model("vit-tiny-32px", pretrained="laion2b_s34b_b79k")
    with torch.device("meta"):
        model = create_model("vit-tiny-32px")
    with pytest.raises(ValueError, match="to_empty"):
        load_checkpoint(model, export_state_dict(create_model("vit-tiny-32px")))


def test_export_says_what_open_clip_cannot_load():
    conv = create_model("conv-tiny-32px")
    with pytest.raises(ValueError, match="export with layout='clipkit'"):
        export_state_dict(conv)
    with pytest.raises(ValueError, match="layout: got 'onnx'"):
        export_state_dict(conv, "onnx")
    custom = export_state_dict(tiny_model(), "open_clip_custom_text")
    assert "text.token_embedding.weight" in custom
    assert "visual.proj" in custom
    assert load_checkpoint(tiny_model(seed=1), custom).layout == "open_clip CustomTextCLIP"


def test_transformers_names_travel_both_ways(tmp_path):
    source, target = tiny_model(), tiny_model(seed=1)
    state = export_state_dict(source, "transformers")
    save_file(state, tmp_path / "model.safetensors")
    state["text_model.embeddings.position_ids"] = torch.arange(24)
    assert load_checkpoint(target, state).layout == "transformers CLIPModel"
    assert same_parameters(source, target)
    del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match=r"1 mismatched \(visual\.transformer\.resblocks\.1\.attn\.in_proj_weight"):
        load_checkpoint(target, state)
    with pytest.raises(ValueError, match="CLIP's own form"):
        export_state_dict(tiny_model(**{"vision.pool": "avg"}), "transformers")
