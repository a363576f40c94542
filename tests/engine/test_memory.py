# SPDX-License-Identifier: Apache-2.0
"""Peak extra memory grows linearly in N, measured in fresh processes by the operating system's own account."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBE = """
import sys, torch
import clipkit
from bench.record import peak_extra_mib
torch.set_num_threads(1)
loss, rows, width = sys.argv[1], int(sys.argv[2]), 32
calls = {
    "clip": lambda image, text, a, b: clipkit.clip_loss(image, text, 20.0),
    "siglip": lambda image, text, a, b: clipkit.siglip_loss(image, text, 10.0, -10.0),
    "gd": lambda image, text, a, b: clipkit.gd_loss(image, text, 20.0, a, b, 30.0),
}
def features(rows):
    towers = [torch.nn.functional.normalize(torch.randn(rows, width), dim=1) for _ in range(4)]
    return [towers[0].requires_grad_(), towers[1].requires_grad_(), *towers[2:]]
calls[loss](*features(64)).backward()  # everything that is loaded or allocated once
towers = features(rows)
print(peak_extra_mib(lambda: calls[loss](*towers).backward()))
"""


def _peak_extra_mib(loss: str, rows: int) -> float:
    command = [sys.executable, "-c", PROBE, loss, str(rows)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux only")
@pytest.mark.parametrize("loss", ["clip", "siglip", "gd"])
def test_peak_extra_memory_is_linear_in_n(loss):
    """Twice the batch, at most twice the memory and a tile, where the N x N matrix would grow fourfold to 400 MiB."""
    small, large = _peak_extra_mib(loss, 5120), _peak_extra_mib(loss, 10240)
    tile = 16
    assert large <= 2 * small + tile
    assert large < 10240**2 * 4 / 2**20 / 4
