# SPDX-License-Identifier: Apache-2.0
"""`clipkit export`: a run's weights as safetensors with the model's configuration beside them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HELP = "write a run's weights as safetensors"

_FOLDER_WEIGHTS, _FOLDER_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `clipkit export`."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="the folder that clipkit train wrote")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="PATH",
        help="NAME.safetensors (NAME.json is written beside it), or a folder that open_clip reads as local-dir:FOLDER",
    )
    parser.add_argument(
        "--layout",
        choices=("auto", "open_clip", "eva_clip", "clipkit"),
        default="auto",
        help="auto (default): open_clip's where it has such a model, else clipkit's own; eva_clip: what EVA-CLIP's "
        "publishers read",
    )
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest complete one")


def run(args: argparse.Namespace) -> int:
    """Export, read the file back, compare."""
    from safetensors.torch import save_file

    from clipkit import __version__
    from clipkit.encoders import export_state_dict
    from clipkit.errors import value_error
    from clipkit.train.loading import load_run

    weights, config_path, is_folder = _paths(args.out)
    model, _, _ = load_run(args.run_dir, step=args.step)
    layout = _layout(args.layout, model)
    if is_folder and layout != "open_clip":
        raise value_error("--out", got=f"a folder, for the layout {layout}", want="NAME.safetensors", fix="name a file")
    state = {name: value.contiguous() for name, value in export_state_dict(model, layout).items()}
    weights.parent.mkdir(parents=True, exist_ok=True)
    partial = weights.with_name(weights.name + ".partial")
    save_file(state, partial, metadata={"format": "pt", "layout": layout, "clipkit": __version__})
    partial.replace(weights)
    config_path.write_text(json.dumps(_config(model, layout, is_folder), indent=2) + "\n", encoding="utf-8")
    print(f"{weights}: {len(state)} tensors in {layout}'s layout; configuration in {config_path.name}")
    print(_check(model, weights))
    print(_how_to_load(model, layout, weights, config_path, is_folder))
    return 0


def _paths(out: Path) -> tuple[Path, Path, bool]:
    if out.suffix == ".safetensors":
        return out, out.with_suffix(".json"), False
    return out / _FOLDER_WEIGHTS, out / _FOLDER_CONFIG, True


def _layout(wanted: str, model: Any) -> str:
    """The layout to write. Only "auto" falls back, and says so; an explicit wish that cannot be met is an error."""
    from clipkit.encoders.checkpoint import open_clip_config

    if wanted in ("clipkit", "eva_clip"):
        return wanted
    try:
        open_clip_config(model.config)
    except ValueError as reason:
        if wanted == "open_clip":
            raise
        print(f"open_clip has no class for this model, so this is clipkit's own layout ({reason})")
        return "clipkit"
    return "open_clip"


def _config(model: Any, layout: str, is_folder: bool) -> dict[str, Any]:
    from clipkit.encoders.checkpoint import open_clip_config

    if layout != "open_clip":
        return dict(model.config.to_dict())
    own = open_clip_config(model.config)
    if not is_folder:
        return own
    vision = model.config.vision
    return {"model_cfg": own, "preprocess_cfg": {"mean": list(vision.mean), "std": list(vision.std)}}


def _check(model: Any, weights: Path) -> str:
    """Logits of the model and of a new one filled from the file, on the same made-up pictures and captions."""
    import torch

    from clipkit.encoders import CLIP, load_checkpoint

    again = CLIP(model.config).eval()
    load_checkpoint(again, weights)
    generator = torch.Generator().manual_seed(0)
    size, text = model.config.vision.image_size, model.config.text
    pixels = torch.randn(4, 3, size, size, generator=generator)
    tokens = torch.zeros(4, text.context_length, dtype=torch.int64)
    length = min(8, text.context_length)
    tokens[:, :length] = torch.randint(1, text.vocab_size - 1, (4, length), generator=generator)
    tokens[:, length - 1] = text.vocab_size - 1
    with torch.no_grad():
        first, second = (
            one.logit_scale.exp() * one.encode_image(pixels, normalize=True) @ one.encode_text(tokens, normalize=True).T
            for one in (model, again)
        )
    difference = float((first - second).abs().max())
    if difference != 0.0:
        raise RuntimeError(f"{weights} was read back with other logits (difference {difference:.3g}); do not use it")
    return "read back: all 16 logits of 4 pictures and 4 captions are equal"


def _how_to_load(model: Any, layout: str, weights: Path, config_path: Path, is_folder: bool) -> str:
    if layout != "open_clip":
        return (
            f"load: clipkit.load_checkpoint(CLIP(CLIPConfig.from_dict(json.load(open({str(config_path)!r})))), "
            f"{str(weights)!r})"
        )
    if is_folder:
        return f"load: open_clip.create_model_and_transforms('local-dir:{weights.parent}')"
    vision = model.config.vision
    return (
        f"load: open_clip.add_model_config({str(config_path)!r}); open_clip.create_model_and_transforms("
        f"{config_path.stem!r}, pretrained={str(weights)!r}, image_mean={tuple(vision.mean)}, "
        f"image_std={tuple(vision.std)})"
    )
