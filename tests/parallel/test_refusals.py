# SPDX-License-Identifier: Apache-2.0
"""A mistake on one rank raises on every rank: there by its own name, elsewhere by the name of that rank.

A rank left waiting fails the test when its process group gives up, with an error that is no ValueError.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

import clipkit
from tests.parallel.ranks import run_on_ranks
from tests.reference.cases import CASES, Case
from tests.reference.naive import unit

ROWS, WIDTH = 4, 6
TWO_DIMENSIONS = {
    "an integer dtype": lambda value: value.long(),
    "one row short": lambda value: value[1:],
    "one column short": lambda value: value[:, 1:],
    "one dimension": lambda value: value[0],
    "another device": lambda value: value.to("meta"),
    "no tensor": lambda value: value.tolist(),
}
ONE_DIMENSION = {
    "an integer dtype": lambda value: value.long(),
    "one value short": lambda value: value[1:],
    "no tensor": lambda value: value.tolist(),
}
NO_DIMENSION = {
    "a string": lambda value: "14",
    "two values": lambda value: value.repeat(2),
    "an integer dtype": lambda value: value.long(),
}
MISTAKES = (NO_DIMENSION, ONE_DIMENSION, TWO_DIMENSIONS)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_mistake_on_one_rank_raises_on_every_rank(world_size):
    run_on_ranks(world_size, _every_mistake)


def _every_mistake(rank: int) -> None:
    guilty = dist.get_world_size() - 1
    for case in CASES:
        for mistake, wrong in _mistakes(case).items():
            _expect_refusal(
                rank, guilty, f"{case.name}, {mistake}", lambda c=case, w=wrong: _call(c, w if rank == guilty else {})
            )
        everyone = _call(case, {})  # no message of a refusal is left over for the next exchange
        torch.testing.assert_close(everyone, _call(case, {}), rtol=0, atol=0, msg=case.name)
    _mistakes_of_modules(rank)
    _other_settings(rank)
    if dist.get_world_size() == 4:
        _a_subgroup_names_ranks_as_the_world_does(rank)


def _mistakes(case: Case) -> dict[str, dict[str, object]]:
    """Every argument of the case spoilt in every way, and a backend that does not exist."""
    inputs, constants = case.make(ROWS, WIDTH, torch.float32)
    spoilt: dict[str, dict[str, object]] = {"an unknown backend": {"backend": "fast"}}
    for name, value in {**inputs, **constants}.items():
        if name == "labels":  # of linear_bce
            spoilt["a label beyond the vocabulary"] = {name: value + 100}
            continue
        spoilt.update({f"{name}: {how}": {name: spoil(value)} for how, spoil in MISTAKES[value.dim()].items()})
    if case.name == "info_nce":
        del spoilt["a: one row short"]  # fewer queries than keys are legal
    return spoilt


def _call(case: Case, wrong: dict[str, object]) -> torch.Tensor:
    inputs, constants = case.make(ROWS, WIDTH, torch.float32)
    return case.ours(**{**inputs, **constants, "group": dist.group.WORLD, **wrong})


def _expect_refusal(rank: int, guilty: int, what: str, call: Callable[[], object]) -> None:
    message = ""
    try:
        call()
    except (TypeError, ValueError) as error:
        message = str(error)
    assert message, f"{what}: nothing raised on rank {rank}"
    assert (f"refused on rank {guilty}" in message) == (rank != guilty), f"{what}, rank {rank}: {message}"


def _mistakes_of_modules(rank: int) -> None:
    image, text = unit(ROWS, WIDTH, 0, torch.float32), unit(ROWS, WIDTH, 1, torch.float32)
    wrong = rank == 0
    calls = {
        "ClipLoss, text": lambda: clipkit.ClipLoss()(image, text.long() if wrong else text, 9.0),
        "ClipLoss, world_size": lambda: clipkit.ClipLoss(world_size=7 if wrong else 1)(image, text, 9.0),
        "SigLipLoss, logit_bias": lambda: clipkit.SigLipLoss()(image, text, 9.0, None if wrong else -1.0),
        "DistillClipLoss, teacher": lambda: clipkit.DistillClipLoss()(
            image, text, 9.0, image, text[1:] if wrong else text, 9.0
        ),
    }
    for what, call in calls.items():
        _expect_refusal(rank, 0, what, call)


def _other_settings(rank: int) -> None:
    """A rank that smooths its labels would make two more collectives than the others: the next one would hang."""
    image, text = unit(ROWS, WIDTH, 0, torch.float32), unit(ROWS, WIDTH, 1, torch.float32)
    world = dist.group.WORLD
    state = torch.zeros(ROWS)
    calls = {
        "clip": lambda: clipkit.clip_loss(image, text, 9.0, label_smoothing=0.1 * (rank == 0), group=world),
        "loss": lambda: (clipkit.info_nce if rank == 0 else clipkit.clip_loss)(image, text, 9.0, group=world),
        "gamma": lambda: clipkit.global_contrastive_loss(
            image, text, 9.0, state, state, gamma=0.5 + 0.1 * (rank == 0), group=world
        ),
        "teacher's width": lambda: clipkit.crd_loss(
            image, text, 9.0, image[:, rank == 0 :], text[:, rank == 0 :], 9.0, group=world
        ),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="group: got another loss, or other settings of it, on rank"):
            call()


def _a_subgroup_names_ranks_as_the_world_does(rank: int) -> None:
    group = dist.new_group([1, 3])
    if rank in (1, 3):
        rows = unit(ROWS, WIDTH, 0, torch.float32)
        spoilt = rows.long() if rank == 3 else rows
        _expect_refusal(rank, 3, "subgroup", lambda: clipkit.clip_loss(rows, spoilt, 9.0, group=group))
