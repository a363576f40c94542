# SPDX-License-Identifier: Apache-2.0
"""What a step sends: FastCLIP nothing in the backward, and exactly one gather of features and one of samples."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from bench.communication import METHODS, ROWS, SAMPLES, WIDTH, Counter, Setting, batch, count
from clipkit.losses import FastCLIPLoss
from tests.parallel.ranks import run_on_ranks

GATHER_FEATURES, GATHER_SAMPLES, AGREE = ("gather", "features"), ("gather", "samples"), ("gather", "agreement")
ANSWER = ("reduce_scatter", "samples")  # rows of a table in blocks, to those who asked
SENT = {
    "FastCLIPLoss v3": [AGREE, GATHER_FEATURES, GATHER_SAMPLES],
    "FastCLIPLoss v2": [AGREE, GATHER_FEATURES, GATHER_SAMPLES],
    "FastCLIPLoss v3, bf16 payload": [AGREE, GATHER_FEATURES, GATHER_SAMPLES],
    "FastCLIPLoss v3, begun early": [AGREE, GATHER_FEATURES, AGREE, GATHER_FEATURES, GATHER_SAMPLES],
    "FastCLIPLoss v3, sharded": [AGREE, GATHER_SAMPLES, ANSWER, AGREE, GATHER_FEATURES, GATHER_SAMPLES],
    "FastCLIPLoss v2, sharded": [AGREE, GATHER_SAMPLES, ANSWER, AGREE, GATHER_FEATURES, GATHER_SAMPLES],
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_bytes_and_collectives_are_those_of_the_formulas(open_clip):
    run_on_ranks(2, _counts)


def _counts(rank: int) -> None:
    ranks = dist.get_world_size()
    for name, method in METHODS.items():
        if method.make is None:
            continue
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            counter, _ = count(method, rank, ranks)
        expected = method.expected(Setting(ranks, ROWS, WIDTH, payload=method.payload))
        assert counter.volume() == expected, name
        everything = [event for event in seen.events() if event.name.startswith("c10d::")]
        assert len(everything) == len(counter.messages), f"{name}: something crosses ranks that is not counted"
        if name in SENT:
            kinds = [(_kind(one.operation), one.carries) for one in counter.messages]
            assert kinds == SENT[name], name
            assert {one.phase for one in counter.messages} == {"forward"}
    assert SENT.keys() <= METHODS.keys()
    _what_needs_nobody_sends_nothing(rank)


def _kind(operation: str) -> str:
    return "reduce_scatter" if operation.startswith("reduce_scatter") else operation.partition("_")[2].split("_")[0]


def _what_needs_nobody_sends_nothing(rank: int) -> None:
    """Storing the estimates, and in a replicated table also reading them."""
    image, text = (tower[rank * ROWS :][:ROWS].requires_grad_() for tower in batch(dist.get_world_size()))
    ids = torch.arange(ROWS) + ROWS * rank
    for placement in ("replicated", "sharded"):
        loss = FastCLIPLoss(SAMPLES, "v2", rho=1.0, placement=placement)
        loss(image, text, 10.0, ids).backward()
        counter = Counter()
        with counter.counting():
            loss.commit()
            if placement == "replicated":
                loss.begin(ids)
                loss.table().read(ids)
        assert not counter.messages
