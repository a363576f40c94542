# SPDX-License-Identifier: Apache-2.0
"""What sets the versions of FastCLIP apart (arXiv 2407.01445), and the schedule of the inner learning rate γ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from clipkit.errors import value_error

GammaSchedule = Literal["cosine", "constant"]


@dataclass(frozen=True)
class Version:
    """`objective`: "unscaled" (GCL without its leading τ), "gcl", "rgcl" or "rgcl-g". `temperature`: who moves τ: the
    optimizer ("learnable"), nobody ("constant") or this loss, one for each sample and side ("individual").
    """

    objective: Literal["unscaled", "gcl", "rgcl", "rgcl-g"]
    temperature: Literal["learnable", "constant", "individual"]
    gamma_schedule: GammaSchedule


VERSIONS = {
    "v0": Version("unscaled", "learnable", "cosine"),
    "v1": Version("gcl", "constant", "cosine"),
    "v2": Version("rgcl", "individual", "cosine"),
    "v3": Version("rgcl-g", "learnable", "cosine"),
    "sogclr": Version("gcl", "constant", "constant"),
    "isogclr": Version("rgcl", "individual", "constant"),
}


def find_version(name: str) -> Version:
    """The version of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in VERSIONS:
        raise value_error("version", got=repr(name), want=f"one of {list(VERSIONS)}", fix="choose one of them")
    return VERSIONS[name]


def inner_rate(epoch: float, *, least: float, schedule: GammaSchedule, decay_epochs: float) -> float:
    """γ at an epoch: 1 throughout the first, in which nothing has an older estimate; then `least`, or half a cosine
    from 1 to `least` over `decay_epochs`. A fraction of an epoch is a position within it.
    """
    if epoch < 1:
        return 1.0
    if schedule == "constant" or epoch >= decay_epochs:
        return least
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * epoch / decay_epochs))
