# SPDX-License-Identifier: Apache-2.0
"""Every optimizer with layer decay: each parameter takes the step that it takes alone at its own rate and decay."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from clipkit.optim import TowerOptions
from clipkit.train.config import MuonConfig, OptimConfig
from clipkit.train.optimizers import build_optimizer

OPTIMIZERS = ["adamw", "lamb", "lion", "muon", "sgd"]


class Towers(nn.Module):
    """Two blocks of an image tower, one of a text tower, a scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual, self.transformer = nn.Module(), nn.Module()
        self.visual.conv1 = nn.Conv2d(3, 4, 2)
        self.visual.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.transformer.resblocks = nn.ModuleList([nn.Linear(4, 4)])
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def blocks(self) -> list[nn.Module]:
        return [*self.visual.blocks, *self.transformer.resblocks]

    def give_gradients(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def three_steps(settings: OptimConfig) -> tuple[Towers, torch.optim.Optimizer]:
    model = Towers()
    optimizer = build_optimizer(settings, model, model.blocks())
    for step in range(3):
        model.give_gradients(step)
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_takes_the_step_of_its_own_rate_and_decay(name):
    if name == "lion":
        pytest.importorskip("pytorch_optimizer")
    image, text = TowerOptions(lr=0.02, layer_decay=0.5), TowerOptions(weight_decay=0.3, layer_decay=0.75)
    settings = OptimConfig(name, lr=0.01, weight_decay=0.1, lr_scale=0.003, muon=MuonConfig(lr=0.04))
    layered, optimizer = three_steps(dataclasses.replace(settings, image=image, text=text))
    factors = {  # of the tower's rate over the common one, and of the layers
        "visual.conv1": 2.0 * 0.5**3,
        "visual.blocks.0": 2.0 * 0.5**2,
        "visual.blocks.1": 2.0 * 0.5,
        "transformer.resblocks.0": 0.75,
        "logit_scale": 1.0,
    }
    moved = set()
    for part, factor in factors.items():
        alone = dataclasses.replace(
            settings,
            lr=settings.lr * factor,
            weight_decay=0.3 if part.startswith("transformer") else 0.1,
            muon=MuonConfig(lr=settings.muon.lr * factor),
        )
        reference, _ = three_steps(alone)
        for key, parameter in layered.named_parameters():
            if key.startswith(part):
                torch.testing.assert_close(parameter, reference.get_parameter(key), rtol=1e-6, atol=1e-7, msg=key)
                assert not torch.equal(parameter, Towers().get_parameter(key))
                moved.add(key)
    assert moved == {key for key, _ in layered.named_parameters()}
    assert len(optimizer.param_groups) == 9, "the weight and the bias of each part, and the scale"
