# SPDX-License-Identifier: Apache-2.0
"""Which backend is the default, and what makes Triton one: a line of one table."""

import pytest
import torch

from clipkit.engine import dispatch, triton_backend

CARD = torch.device("cuda")


@pytest.fixture
def card(monkeypatch):
    """Dispatch as on a machine with a card and Triton."""

    def obstacle(device, dtype):
        return "its kernels accumulate in fp32" if dtype == torch.float64 else None

    monkeypatch.setattr(triton_backend, "obstacle", obstacle)


def test_an_unproven_backend_is_never_the_default(card):
    assert "triton" in dispatch._UNPROVEN
    assert dispatch._default(CARD, torch.bfloat16) == "torch"


def test_a_proven_one_is_the_default_for_what_it_serves(card, monkeypatch):
    monkeypatch.delitem(dispatch._UNPROVEN, "triton")
    assert dispatch._default(CARD, torch.bfloat16) == "triton"
    assert dispatch._default(CARD, torch.float64) == "torch"


def test_devices_without_kernels_of_ours_use_torch():
    assert dispatch._default(torch.device("mps"), torch.float32) == "torch"
