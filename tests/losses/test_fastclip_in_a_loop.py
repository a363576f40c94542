# SPDX-License-Identifier: Apache-2.0
"""FastCLIPLoss in somebody's own loop: the documented example runs, and overflows of fused optimizers are heeded."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from clipkit.losses import FastCLIPLoss
from tests.reference.naive import unit

DOCUMENT = Path(__file__).parents[2] / "docs" / "fastclip.md"


def test_the_documented_example_runs_and_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(example, str(DOCUMENT), "exec"), names)
    first, last = names["losses"][0], names["losses"][-1]
    assert math.isfinite(last)
    assert last < first
    estimates = names["loss"].table().read(torch.arange(names["count"]))
    assert estimates.isfinite().all(), "every sample was visited"
    assert torch.equal(names["resumed"].table().read(torch.arange(names["count"])), estimates)


@pytest.mark.parametrize("fused", [True, False])
def test_an_overflow_that_a_fused_optimizer_skips_stores_nothing(fused):
    """GradScaler calls a fused optimizer's step all the same, and the hook after it."""
    loss = FastCLIPLoss(10, "v3", rho=1.0)
    image, text = (torch.nn.Parameter(unit(6, 4, seed, torch.float32)) for seed in (1, 2))
    optimizer = torch.optim.AdamW([image, text], fused=fused)
    loss.commit_after(optimizer)
    ids = torch.arange(6)
    for scale, stored in ((1e38, False), (1.0, True)):
        optimizer.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        value = loss(image, text, 50.0, ids)
        scaler.scale(1e10 * value if scale > 1 else value).backward()
        before = image.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, image) != stored
        assert bool(loss.table().read(ids).isfinite().all()) == stored
