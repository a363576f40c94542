# SPDX-License-Identifier: Apache-2.0
"""FastCLIPLoss and its table on a card: what it is on the CPU, by default and on Triton, and no wait for the device."""

from __future__ import annotations

import pytest
import torch

from clipkit.losses import FastCLIPLoss
from tests.reference.naive import unit

SAMPLES, ROWS, STEPS = 40, 24, 3
VERSIONS = ("v0", "v1", "v2", "v3", "sogclr", "isogclr")


def batch(step: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Features, and ids of which the first stands there twice."""
    ids = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(step))[:ROWS]
    ids[-1] = ids[0]
    return [unit(ROWS, 16, 2 * step + side, torch.float32) for side in (0, 1)], ids


def train(loss: FastCLIPLoss, device: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Losses and gradients of some steps, one of which is skipped, and the table in the end."""
    batches = [([tower.to(device) for tower in towers], ids.to(device)) for towers, ids in map(batch, range(STEPS))]
    scale = torch.tensor(20.0, device=device, requires_grad=True)
    skips = [torch.tensor(float(step == 1), device=device) for step in range(STEPS)]
    loss.table(device)
    found: list[torch.Tensor] = []
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        for epoch, (towers, ids) in enumerate(batches):
            leaves = [tower.requires_grad_() for tower in towers]
            loss.set_epoch(epoch)
            loss.begin(ids)
            value = loss(*leaves, scale, ids)
            value.backward()
            loss.commit(skips[epoch])
            found += [value.detach(), *(leaf.grad for leaf in leaves)]
    finally:
        if device != "cpu":
            torch.cuda.set_sync_debug_mode("default")
    found.append(scale.grad)
    return [each.cpu() for each in found], loss.table().tensors()["rows"].cpu()


@pytest.mark.parametrize("backend", [None, "triton"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_card_gives_what_the_cpu_gives_and_twice_the_same_bits(version, backend):
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")
        train(FastCLIPLoss(SAMPLES, version, rho=1.5, backend=backend), "cuda")  # compiles, which may wait
    options = {"rho": 1.5, "decay_epochs": 2, "gamma": 0.3}
    expected, rows = train(FastCLIPLoss(SAMPLES, version, **options), "cpu")
    first, again = (train(FastCLIPLoss(SAMPLES, version, backend=backend, **options), "cuda") for _ in range(2))
    for ours, theirs in zip((*first[0], first[1]), (*again[0], again[1]), strict=True):
        assert torch.equal(ours, theirs)
    for ours, wanted in zip(first[0], expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first[1], rows, rtol=1e-4, atol=1e-5)


def test_an_id_outside_shows_in_the_loss_and_stores_nothing():
    loss = FastCLIPLoss(SAMPLES, "v3", rho=1.5)
    towers, ids = batch(0)
    ids[3] = SAMPLES
    value = loss(*(tower.cuda() for tower in towers), 20.0, ids.cuda())
    loss.commit()
    assert value.isnan()
    assert loss.table().tensors()["rows"].isneginf().all()
