# SPDX-License-Identifier: Apache-2.0
"""Towers out of separate checkpoints: the right values, every tensor of all three accounted for, or nothing at all."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import clipkit
from clipkit.encoders import PUBLISHED_SKIP, CLIPConfig, export_state_dict, load_towers
from clipkit.encoders.layouts import recognise
from clipkit.encoders.origins import translate
from clipkit.encoders.resizing import fit_patches, fit_positions
from tests.encoders.naive import padded_tokens, tiny_model

PIXELS = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TOKENS = padded_tokens([4, 24, 9], 24)


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def in_image_tower(name):
    return name.startswith("visual.")


def keys_cubic(x, a=-0.75):
    """The convolution kernel of Keys 1981 with torch's a for a grid that is not antialiased."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def resampling(old, new):
    """The [new, old] matrix of bicubic resampling along one side: pixel centres, borders repeated."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        first = math.floor(centre) - 1
        for tap in range(first, first + 4):
            matrix[row, min(max(tap, 0), old - 1)] += keys_cubic(centre - tap)
    return matrix


# What is taken


def test_each_tower_comes_from_its_file_and_the_heads_start_anew(tmp_path):
    image, text, model = tiny_model(seed=1), tiny_model(seed=2), tiny_model()
    save_file(export_state_dict(image), tmp_path / "image.safetensors")
    torch.save({"epoch": 3, "state_dict": export_state_dict(text, "open_clip_custom_text")}, tmp_path / "text.pt")
    before = values(model)
    report = clipkit.load_towers(model, image=tmp_path / "image.safetensors", text=str(tmp_path / "text.pt"))
    fresh = {"visual.proj", "text_projection", "logit_scale"}
    assert {*report.image.skipped, *report.text.skipped} == fresh
    for name, value in model.state_dict().items():
        source = before if name in fresh else values(image if in_image_tower(name) else text)
        assert torch.equal(value, source[name]), name
    assert report.image.layout == "open_clip CLIP"
    assert report.text.layout == "open_clip CustomTextCLIP"
    assert report.image.source == str(tmp_path / "image.safetensors")


def test_without_a_skip_list_the_features_come_along():
    image, text, model = tiny_model(seed=1), tiny_model(seed=2), tiny_model()
    report = load_towers(model, image=export_state_dict(image), text=export_state_dict(text, "transformers"), skip=())
    torch.testing.assert_close(model.encode_image(PIXELS), image.encode_image(PIXELS), rtol=0, atol=0)
    torch.testing.assert_close(model.encode_text(TOKENS), text.encode_text(TOKENS), rtol=0, atol=0)
    assert torch.equal(model.logit_scale, text.logit_scale), "the temperature counts as text"
    assert not report.image.skipped
    assert not report.text.skipped


@pytest.mark.parametrize("tower", ["image", "text"])
def test_one_tower_alone_leaves_the_other_untouched(tower):
    source, model = tiny_model(seed=1), tiny_model()
    before = values(model)
    report = load_towers(model, **{tower: export_state_dict(source)}, skip=())
    for name, value in model.state_dict().items():
        taken = in_image_tower(name) == (tower == "image")
        assert torch.equal(value, (values(source) if taken else before)[name]), name
        assert (name in report.untouched) != taken
    assert list(report.towers()) == [tower]


def test_values_take_the_models_dtype():
    source, model = tiny_model(torch.float16, seed=1), tiny_model(torch.float32)
    load_towers(model, image=export_state_dict(source))
    assert torch.equal(model.visual.ln_post.bias, source.visual.ln_post.bias.float())


# Resizing


def test_a_patch_kernel_is_resampled_as_written_out_by_hand():
    source = tiny_model(seed=1, **{"vision.image_size": 56, "vision.patch_size": 14})
    model = tiny_model(**{"vision.image_size": 64, "vision.patch_size": 16})
    report = load_towers(model, image=export_state_dict(source))
    kernel, matrix = source.visual.conv1.weight, resampling(14, 16)
    torch.testing.assert_close(model.visual.conv1.weight, matrix @ kernel @ matrix.T, rtol=1e-12, atol=1e-14)
    assert list(report.image.resized) == ["visual.conv1.weight"], "four by four patches in both"
    assert str(report.image.resized["visual.conv1.weight"]) == "(32, 3, 14, 14) -> (32, 3, 16, 16), bicubic"


@pytest.mark.parametrize("image_size", [8, 24, 36])
def test_image_positions_are_resampled_as_written_out_by_hand_and_the_class_token_kept(image_size):
    source, model = tiny_model(seed=1), tiny_model(**{"vision.image_size": image_size})
    load_towers(model, image=export_state_dict(source))
    old, side = source.visual.positional_embedding, image_size // 4
    matrix = resampling(4, side)
    grid = torch.einsum("ia,jb,abd->ijd", matrix, matrix, old[1:].reshape(4, 4, 32)).reshape(side**2, 32)
    found = model.visual.positional_embedding
    assert torch.equal(found[0], old[0])
    torch.testing.assert_close(found[1:], grid, rtol=1e-12, atol=1e-14)
    theirs = F.interpolate(old[1:].T.reshape(1, 32, 4, 4), size=(side, side), mode="bicubic", align_corners=False)
    torch.testing.assert_close(found[1:], theirs.reshape(32, -1).T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("new", "steps_off"), [(8, 1e-12), (32, 0.05)])
def test_a_ramp_over_the_picture_stays_that_ramp(new, steps_off):
    """Exactly where new centres lie between old ones; else this cubic (a = -3/4) is off by under 5 % of an old step."""
    source = tiny_model(seed=1, **{"vision.image_size": 64})
    model = tiny_model(**{"vision.image_size": 4 * new})

    def ramp(count):
        centres = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        return centres[:, None] * 16 + torch.zeros(count)

    source.visual.positional_embedding.data[1:] = ramp(16).reshape(-1, 1)
    load_towers(model, image=export_state_dict(source))
    found, border = model.visual.positional_embedding[1:].reshape(new, new, 32), new // 8
    off = (found - ramp(new)[:, :, None]).abs()[border:-border]
    assert off.max() < steps_off


def test_half_precision_positions_are_resampled_in_single_precision():
    source, model = tiny_model(torch.float16, seed=1), tiny_model(**{"vision.image_size": 24})
    load_towers(model, image=export_state_dict(source))
    matrix, old = resampling(4, 6), source.visual.positional_embedding.double()
    grid = torch.einsum("ia,jb,abd->ijd", matrix, matrix, old[1:].reshape(4, 4, 32)).reshape(36, 32)
    torch.testing.assert_close(model.visual.positional_embedding[1:], grid, rtol=1e-5, atol=1e-6)


def test_a_shorter_context_keeps_the_first_text_positions():
    source, model = tiny_model(seed=1), tiny_model(**{"text.context_length": 20})
    report = load_towers(model, text=export_state_dict(source), skip=())
    tokens = padded_tokens([4, 20], 20)
    torch.testing.assert_close(model.encode_text(tokens), source.encode_text(tokens), rtol=0, atol=1e-13)
    assert str(report.text.resized["positional_embedding"]) == "(24, 24) -> (20, 24), first rows"


def test_eva_clips_positions_and_kernels_are_resampled_alike():
    positions = torch.randn(17, 8, dtype=torch.float64)
    flat = fit_positions("visual.positional_embedding", positions, torch.Size((37, 8)), antialias=False)
    found = fit_positions("visual.pos_embed", positions[None], torch.Size((1, 37, 8)), antialias=False)
    assert torch.equal(found, flat[None])
    kernel = torch.randn(8, 3, 14, 14, dtype=torch.float64)
    found = fit_patches("visual.patch_embed.proj.weight", kernel, torch.Size((8, 3, 16, 16)))
    torch.testing.assert_close(found, resampling(14, 16) @ kernel @ resampling(14, 16).T, rtol=1e-12, atol=1e-14)
    assert fit_patches("visual.stem.weight", kernel, torch.Size((8, 3, 16, 16))) is None


# Skipping


def test_patterns_stand_for_names_for_what_lies_below_and_for_globs():
    source, model = tiny_model(seed=1), tiny_model()
    before = values(model)
    skip = ["visual.transformer.resblocks.0", "visual.*.ln_2.*", "visual.proj"]
    report = load_towers(model, image=export_state_dict(source), skip=skip)
    names = [name for name in before if in_image_tower(name)]
    wanted = {name for name in names if ".resblocks.0." in name or ".ln_2." in name or name == "visual.proj"}
    assert set(report.image.skipped) == wanted
    assert report.image.skipped["visual.transformer.resblocks.0.ln_2.bias"] == skip[0], "the first that matches"
    assert report.image.skipped["visual.transformer.resblocks.1.ln_2.bias"] == skip[1]
    for name in names:
        assert torch.equal(model.state_dict()[name], (before if name in wanted else values(source))[name]), name


def test_a_skipped_parameter_may_have_any_shape_or_be_absent():
    source, model = tiny_model(seed=1, embed_dim=8), tiny_model()
    state = export_state_dict(source)
    del state["text_projection"]
    report = load_towers(model, image=state, text=state)
    assert report.image.unused["visual.proj"] == "skipped by 'visual.proj'"
    assert "text_projection" in report.text.skipped


def test_a_pattern_that_matches_nothing_is_an_error_but_the_published_ones_may():
    source, model = tiny_model(seed=1), tiny_model()
    before = values(model)
    with pytest.raises(ValueError, match=r"skip: got 'visual\.prj', 'token\*'; .*did you mean visual\.proj"):
        load_towers(model, image=export_state_dict(source), skip=[*PUBLISHED_SKIP, "visual.prj", "token*"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    load_towers(model, image=export_state_dict(source), skip=PUBLISHED_SKIP)
    with pytest.raises(TypeError, match=r"skip: got 'visual\.proj'; want a sequence"):
        load_towers(model, image=export_state_dict(source), skip="visual.proj")


def test_what_pre_training_left_on_a_tower_stays_behind_with_a_reason():
    source, model = tiny_model(seed=1), tiny_model()
    state = {name: value for name, value in export_state_dict(source).items() if in_image_tower(name)}
    extras = ("mask_token", "lm_head.weight", "decoder_blocks.0.norm1.weight", "visual.blocks.3.attn.rope.freqs_cos")
    state |= {name: torch.zeros(3) for name in extras}
    report = load_towers(model, image=state)
    assert report.image.layout == "clipkit image tower"
    assert {name: report.image.unused[name] for name in extras} == {
        "mask_token": "skipped by 'mask_token'",
        "lm_head.weight": "skipped by 'lm_head'",
        "decoder_blocks.0.norm1.weight": "skipped by 'decoder*'",
        "visual.blocks.3.attn.rope.freqs_cos": "skipped by '*rope.freqs_*'",
    }
    state["teacher.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"1 left over \(teacher\.weight\)"):
        load_towers(model, image=state)
    load_towers(model, image=state, skip=[*PUBLISHED_SKIP, "teacher"])


# Refusals


def test_one_error_names_every_problem_of_both_towers_and_writes_nothing():
    image, text = export_state_dict(tiny_model(seed=1)), export_state_dict(tiny_model(seed=2))
    del image["visual.ln_post.bias"]
    image["visual.class_embedding"] = torch.zeros(7)
    del text["ln_final.weight"]
    text["token_embedding.weight"] = torch.zeros(601, 24)
    text["transformer.extra"] = torch.zeros(1)
    model = tiny_model()
    before = values(model)
    with pytest.raises(ValueError, match="towers: got image from a state dict") as caught:
        load_towers(model, image=image, text=text)
    for said in (
        "1 missing (visual.ln_post.bias)",
        "1 of another shape (visual.class_embedding: (7,) -> (32,))",
        "text from a state dict (open_clip CLIP) with 1 missing (ln_final.weight)",
        "1 of another shape (token_embedding.weight: (601, 24) -> (600, 24))",
        "1 left over (transformer.extra)",
    ):
        assert said in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_missing_name_is_said_however_many():
    names = [name for name in export_state_dict(tiny_model()) if in_image_tower(name) and "resblocks" in name]
    state = {name: value for name, value in export_state_dict(tiny_model(seed=1)).items() if name not in names}
    with pytest.raises(ValueError) as caught:
        load_towers(tiny_model(), image=state)
    assert all(name in str(caught.value) for name in names)


def test_a_good_tower_is_not_written_when_the_other_one_is_bad():
    model = tiny_model()
    before = values(model)
    with pytest.raises(ValueError, match="text from"):
        load_towers(model, image=export_state_dict(tiny_model(seed=1)), text={"token_embedding.weight": torch.zeros(2)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_deeper_tower_is_not_cut_to_the_models_depth():
    deeper = export_state_dict(tiny_model(seed=1, **{"vision.layers": 3}))
    with pytest.raises(ValueError, match=r"12 left over \(visual\.transformer\.resblocks\.2\.") as caught:
        load_towers(tiny_model(), image=deeper)
    assert "missing" not in str(caught.value)
    report = load_towers(tiny_model(), image=deeper, skip=[*PUBLISHED_SKIP, "visual.transformer.resblocks.2"])
    assert len([why for why in report.image.unused.values() if "resblocks.2" in why]) == 12


@pytest.mark.parametrize(
    ("tower", "given", "wanted", "words"),
    [
        ("text", {}, {"text.context_length": 30}, r"positional_embedding: \(24, 24\) -> \(30, 24\)"),
        ("image", {"vision.width": 48}, {}, r"visual\.positional_embedding: \(17, 48\) -> \(17, 32\)"),
        ("image", {"vision.width": 48, "vision.patch_size": 8}, {}, r"visual\.conv1\.weight: \(48, 3, 8, 8\)"),
    ],
)
def test_what_cannot_be_resized_is_refused(tower, given, wanted, words):
    with pytest.raises(ValueError, match=words):
        load_towers(tiny_model(**wanted), **{tower: export_state_dict(tiny_model(seed=1, **given))})


def test_a_checkpoint_without_the_tower_is_refused():
    state = {name: value for name, value in export_state_dict(tiny_model(seed=1)).items() if in_image_tower(name)}
    with pytest.raises(ValueError, match=r"text from a state dict \(clipkit image tower\) with 40 missing") as caught:
        load_towers(tiny_model(), text=state)
    assert "left over" not in str(caught.value)


def test_positions_of_no_square_are_refused():
    state = export_state_dict(tiny_model(seed=1))
    state["visual.positional_embedding"] = torch.zeros(14, 32)
    with pytest.raises(ValueError, match=r"visual\.positional_embedding: \(14, 32\) -> \(17, 32\)"):
        load_towers(tiny_model(), image=state)


def test_nothing_is_resized_unless_allowed():
    state = export_state_dict(tiny_model(seed=1, **{"vision.image_size": 32, "vision.patch_size": 8}))
    load_towers(tiny_model(), image=state)
    with pytest.raises(ValueError, match=r"1 of another shape \(visual\.conv1\.weight"):
        load_towers(tiny_model(), image=state, resize=False)


def test_other_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="image, text: got neither"):
        load_towers(tiny_model())
    with pytest.raises(FileNotFoundError, match=r"gone\.pt is not a file"):
        load_towers(tiny_model(), text=tmp_path / "gone.pt")
    with pytest.raises(ValueError, match=r"tensors layer\.weight; want a CLIP in the layout of"):
        load_towers(tiny_model(), image={"layer.weight": torch.zeros(2)})
    with torch.device("meta"):
        model = clipkit.create_model("vit-tiny-32px")
    with pytest.raises(ValueError, match="to_empty"):
        load_towers(model, image=export_state_dict(tiny_model()))


# Accounting


def openai(model):
    numbers = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    return {**{name: value.half() for name, value in export_state_dict(model).items()}, **numbers}


def transformers_text(model):
    state = export_state_dict(model, "transformers")
    kept = {name: value for name, value in state.items() if name.startswith("text_")}
    return {**kept, "text_model.embeddings.position_ids": torch.arange(24)}


def timm(model):
    """A plain timm tower: patch bias, positions [1, n, width], a classifier; all under names of their own."""
    names = (
        *(("conv1", "patch_embed.proj"), ("class_embedding", "cls_token"), ("positional_embedding", "pos_embed")),
        *(("ln_pre", "norm_pre"), ("ln_post", "norm"), ("transformer.resblocks", "blocks"), ("ln_", "norm")),
        *(("attn.in_proj_", "attn.qkv."), ("attn.out_proj", "attn.proj"), ("c_fc", "fc1"), ("c_proj", "fc2")),
    )
    state = {}
    for name, value in model.visual.state_dict().items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        state[name] = value
    del state["proj"]
    state["cls_token"], state["pos_embed"] = state["cls_token"].reshape(1, 1, -1), state["pos_embed"][None]
    state["patch_embed.proj.bias"] = torch.ones(32)
    return {**state, "head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}


LAYOUTS = {
    "open_clip": export_state_dict,
    "open_clip_custom_text": lambda model: export_state_dict(model, "open_clip_custom_text"),
    "transformers": lambda model: export_state_dict(model, "transformers"),
    "transformers text": transformers_text,
    "OpenAI": openai,
    "timm": timm,
    "image alone": lambda model: {n: v for n, v in export_state_dict(model).items() if in_image_tower(n)},
    "text alone": lambda model: {n: v for n, v in export_state_dict(model).items() if not in_image_tower(n)},
}
ONE_TOWER = {"transformers text": "text", "text alone": "text", "timm": "image", "image alone": "image"}
PAIRS = [(layout, tower) for layout in LAYOUTS for tower in ("image", "text") if ONE_TOWER.get(layout, tower) == tower]


@pytest.mark.parametrize(("layout", "tower"), PAIRS)
def test_every_parameter_and_every_tensor_is_accounted_for_once(layout, tower):
    source, model = tiny_model(seed=1), tiny_model(**{"vision.image_size": 24, "text.context_length": 20})
    state = LAYOUTS[layout](source)
    report = load_towers(model, **{tower: state})
    filled = report.towers()[tower]
    parameters = [*filled.loaded, *filled.resized, *filled.skipped]
    assert sorted(parameters) == sorted(n for n in model.state_dict() if in_image_tower(n) == (tower == "image"))
    assert sorted([*parameters, *report.untouched]) == sorted(model.state_dict())
    assert sorted([*filled.used, *filled.unused]) == sorted(state)
    assert list(filled.resized) == [{"image": "visual.positional_embedding", "text": "positional_embedding"}[tower]]
    assert "" not in filled.unused.values()
    for name in filled.loaded:
        wanted = source.state_dict()[name]
        found = model.state_dict()[name]
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-4, msg=name) if layout == "OpenAI" else (
            torch.testing.assert_close(found, wanted, rtol=0, atol=0, msg=name)
        )


def test_names_are_the_checkpoints_own_also_where_a_layout_joins_or_drops_them():
    filled = load_towers(tiny_model(), text=transformers_text(tiny_model(seed=1))).text
    prefix = "text_model.encoder.layers.2.self_attn."
    assert {f"{prefix}{part}_proj.weight" for part in "qkv"} <= set(filled.used)
    assert filled.unused["text_model.embeddings.position_ids"].startswith("no weight")
    assert load_towers(tiny_model(), text=openai(tiny_model(seed=1))).text.unused["vocab_size"].startswith("no weight")
    image = load_towers(tiny_model(), image=timm(tiny_model(seed=1))).image
    assert "patch_embed.proj.bias" in image.used, "folded into the positions"
    assert image.unused["head.bias"] == "skipped by 'head'"


def test_origins_go_through_every_kind_of_operation():
    state = timm(tiny_model())
    translated, origins = translate(recognise(state), state)
    assert origins["visual.positional_embedding"] == {"pos_embed", "patch_embed.proj.bias"}
    assert origins["visual.transformer.resblocks.1.attn.in_proj_weight"] == {"blocks.1.attn.qkv.weight"}
    assert all(type(value) is torch.Tensor for value in translated.values())
    plain = recognise(state).translate(state)
    assert all(torch.equal(value, plain[name]) for name, value in translated.items())


def test_the_report_is_a_table_and_json():
    deep = export_state_dict(tiny_model(seed=1, **{"vision.image_size": 32}))
    report = load_towers(tiny_model(), image=deep)
    lines = str(report).splitlines()
    assert lines[0] == (
        "image tower: 30 loaded, 1 resized, 1 skipped; a state dict (open_clip CLIP), 43 of its tensors unused"
    )
    words = [" ".join(line.split()) for line in lines]
    for row in (
        "loaded visual.transformer.resblocks.*.attn.in_proj_weight x 2",
        "resized visual.positional_embedding (65, 32) -> (17, 32), bicubic",
        "skipped visual.proj by 'visual.proj'",
        "unused * x 42; of the other tower",
        "unused visual.proj skipped by 'visual.proj'",
        "untouched: 42 tensors of the tower without a checkpoint",
    ):
        assert row in words
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["image"]["resized"]["visual.positional_embedding"]["given"] == [65, 32]
    assert plain["text"] is None
    assert len(plain["untouched"]) == 42


# Other towers, other libraries


def test_a_resnets_statistics_and_pool_positions_come_along():
    name = "resnet-tiny-64px"
    torch.manual_seed(1)
    source = clipkit.create_model(name)
    for key, value in source.state_dict().items():
        if "running" in key:
            value.uniform_(0.5, 1.5)
    model = clipkit.create_model(name, **{"vision.image_size": 96})
    report = load_towers(model, image=export_state_dict(source))
    assert torch.equal(model.visual.bn1.running_var, source.visual.bn1.running_var)
    assert list(report.image.resized) == ["visual.attnpool.positional_embedding"]
    assert {name.rpartition(".")[0] for name in report.image.skipped} == {"visual.attnpool.c_proj"}


def test_timms_tower_and_open_clips_text_have_their_features(timm_vision_transformer, open_clip):
    image = timm_vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=16
    )
    image.head = torch.nn.Linear(32, 16, bias=False)
    for parameter in image.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image = image.double().eval()
    model = tiny_model(**{"vision.pre_norm": False, "vision.norm_eps": image.norm.eps})
    config: CLIPConfig = tiny_model().config
    text = open_clip.CustomTextCLIP(**clipkit.encoders.open_clip_config(config)).double().eval()
    report = load_towers(model, image=image.state_dict(), text=text.state_dict(), skip=())
    torch.testing.assert_close(model.encode_image(PIXELS), image(PIXELS), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(model.encode_text(TOKENS), text.encode_text(TOKENS), rtol=1e-11, atol=1e-12)
    assert not report.image.unused
