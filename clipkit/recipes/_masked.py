# SPDX-License-Identifier: Apache-2.0
"""The model of masked image modelling, what it is asked for, and who knows the answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from clipkit.encoders import CLIP, CLIPConfig, create_model
from clipkit.encoders.eva import EvaTower
from clipkit.encoders.patches import cut
from clipkit.encoders.vision import VisionTransformer
from clipkit.errors import value_error

_FLAT = 1e-6
"""Added to the variance of a patch's pixels, as in MAE's code: a blank patch has none."""
_SAME = ("image_size", "patch_size", "mean", "std")
"""What a teacher's pictures and patches have to share with the student's."""


@dataclass(frozen=True)
class MaskedConfig:
    """A CLIP, and how many numbers are to be said of a hidden patch."""

    clip: CLIPConfig
    target_width: int


class MaskedModel(nn.Module):
    """A CLIP's image tower, a token that hides patches, and a linear layer that says what they were.

    Only these are trained: the tower's projection, the text tower and the temperature are frozen.
    """

    def __init__(self, config: MaskedConfig, clip: CLIP | None = None) -> None:
        """`clip`: the model, if it is there already; a fresh one of the configuration otherwise."""
        super().__init__()
        self.config = config
        self.clip = CLIP(config.clip) if clip is None else clip
        tower = image_tower(self.clip)
        self.clip.requires_grad_(False)
        tower.requires_grad_(True)
        (tower.head if isinstance(tower, EvaTower) else tower.proj).requires_grad_(False)
        width = tower.config.width
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.lm_head = nn.Linear(width, config.target_width)
        nn.init.trunc_normal_(self.lm_head.weight, std=0.02)
        nn.init.zeros_(self.lm_head.bias)

    def forward(self, pixels: Tensor, hidden: Tensor) -> Tensor:
        """What the hidden patches are taken for, [n, count, target_width].

        pixels: [n, 3, side, side]. hidden: int64 [n, count], numbers of patches.
        """
        tokens = image_tower(self.clip).encode_patches(pixels, hidden, self.mask_token)
        return self.lm_head(pick(tokens, hidden))


def image_tower(clip: CLIP) -> EvaTower | VisionTransformer:
    """The model's image tower, if it has patches that can be hidden; ValueError otherwise."""
    tower = clip.visual
    if not isinstance(tower, EvaTower | VisionTransformer):
        raise value_error(
            "model.name",
            got=f"a model whose image tower is a {tower.config.kind}",
            want="a transformer over patches (vit or eva)",
            fix="choose another model for recipe mim",
        )
    return tower


def pick(patches: Tensor, chosen: Tensor) -> Tensor:
    """Rows of [n, patches, width] by number: chosen int64 [n, count] -> [n, count, width]."""
    return patches.gather(1, chosen.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


def normalised_patches(pixels: Tensor, size: int) -> Tensor:
    """[n, 3, side, side] -> [n, patches, 3 * size * size]: each patch's pixels less their mean and over their standard
    deviation (unbiased), all channels together (He et al. 2022, "MAE", section 3)."""
    patches = cut(pixels, size).flatten(3).flatten(1, 2)
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + _FLAT).sqrt()


@torch.no_grad()
def patch_features(teacher: CLIP, pixels: Tensor) -> Tensor:
    """What a CLIP's image tower has for each patch in the space that it shares with text, [n, patches, embed_dim]."""
    tower = image_tower(teacher)
    tokens = tower.encode_patches(pixels)
    return tower.head(tokens) if isinstance(tower, EvaTower) else tokens @ tower.proj


def load_teacher(path: str, model: str | None, student: CLIPConfig) -> CLIP:
    """The CLIP of a run's folder, or of a checkpoint file of the named model, frozen, for a student's pictures.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file without the model's name, or a folder with it; a teacher that takes other pictures than the
            student, or cuts them into other patches.
    """
    folder = not Path(path).is_file()
    if folder == (model is not None):
        raise value_error(
            "recipe.options.teacher_model",
            got=repr(model),
            want=f"nothing: {path} is no file" if folder else f"the name of the model whose weights are in {path}",
            fix="a run's folder says which model it has, a checkpoint file does not",
        )
    if model is None:
        from clipkit.train.loading import load_run

        teacher, _, _ = load_run(path)
    else:
        teacher = create_model(model, pretrained=path)
    image_tower(teacher)
    theirs, ours = ({name: getattr(one.vision, name) for name in _SAME} for one in (teacher.config, student))
    if theirs != ours:
        raise value_error(
            "recipe.options.teacher", got=theirs, want=f"as the student has: {ours}", fix="use another teacher or model"
        )
    return teacher.requires_grad_(False).eval()
