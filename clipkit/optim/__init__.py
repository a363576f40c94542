# SPDX-License-Identifier: Apache-2.0
"""Optimizers, parameter groups and schedules."""

from clipkit.optim.groups import TowerOptions, hidden_matrices, parameter_groups
from clipkit.optim.lamb import Lamb
from clipkit.optim.muon import Muon
from clipkit.optim.schedule import learning_rate, step_threshold_rate

__all__ = [
    "Lamb",
    "Muon",
    "TowerOptions",
    "hidden_matrices",
    "learning_rate",
    "parameter_groups",
    "step_threshold_rate",
]
