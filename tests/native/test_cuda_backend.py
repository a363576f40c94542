# SPDX-License-Identifier: Apache-2.0
"""The backend "cuda" is used when asked for by name, never by default, and says why it cannot serve."""

import types

import pytest
import torch

import clipkit
from clipkit.engine import cuda_backend, dispatch, sample_state
from clipkit.engine.cuda_backend import library

CPU, CARD = torch.device("cpu"), torch.device("cuda")


def built(monkeypatch, *, cuda, missing=None):
    info = {"cuda": cuda, "cuda_archs": "80,90a" if cuda else ""}
    module = None if missing else types.SimpleNamespace(build_info=lambda: info)
    monkeypatch.setattr(library, "_load", lambda: (module, missing))


@pytest.mark.parametrize("device", [CPU, CARD])
@pytest.mark.parametrize(
    "build, said",
    [
        ({"cuda": False, "missing": "no compiled part"}, "no compiled part"),
        ({"cuda": False}, "without its CUDA part (CLIPKIT_BUILD_CUDA=1"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, build, said, device):
    monkeypatch.delenv("CLIPKIT_CUDA_ON_HOST", raising=False)
    built(monkeypatch, **build)
    assert said in cuda_backend.obstacle(device, torch.float32)


def test_without_a_device_it_says_what_was_compiled_and_that_no_card_ran_it(monkeypatch):
    monkeypatch.delenv("CLIPKIT_CUDA_ON_HOST", raising=False)
    built(monkeypatch, cuda=True)
    reason = cuda_backend.obstacle(CPU, torch.float32)
    assert "compiled for sm_80, sm_90a, not yet run on a card" in reason
    assert "needs a CUDA device" in reason
    status = next(status for status in dispatch.report() if (status.name, status.device) == ("cuda", "cpu"))
    assert not status.default
    assert "not yet run on a card" in status.reason


@pytest.mark.parametrize("capability, served", [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_cards_are_served_from_sm_80_on(monkeypatch, capability, served):
    built(monkeypatch, cuda=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    reason = cuda_backend.obstacle(CARD, torch.bfloat16)
    assert (reason is None) is served
    assert served or "the card has 7.5" in reason
    assert "fp32" in cuda_backend.obstacle(CARD, torch.float64)


def test_it_is_never_the_default(monkeypatch):
    monkeypatch.setenv("CLIPKIT_CUDA_ON_HOST", "1")
    monkeypatch.delenv("CLIPKIT_BACKEND", raising=False)
    statuses = [status for status in dispatch.report() if status.name == "cuda"]
    assert statuses
    assert not any(status.default for status in statuses)
    for devices in dispatch._ORDER.values():
        assert "cuda" not in devices


def test_asked_for_where_it_cannot_serve_it_is_an_error(monkeypatch):
    monkeypatch.delenv("CLIPKIT_CUDA_ON_HOST", raising=False)
    with pytest.raises(ValueError, match=r"backend: got 'cuda' for torch\.float32 tensors on cpu"):
        sample_state.gather_state(torch.zeros(3), torch.tensor([0]), backend="cuda")


def test_sweeps_that_it_lacks_are_plain_torchs(on_host):
    x, y = (torch.nn.functional.normalize(torch.randn(9, 5), dim=1) for _ in range(2))
    labels = torch.arange(9)
    found = clipkit.info_nce(x, y, 10.0, labels=labels, backend="cuda")
    assert torch.equal(found, clipkit.info_nce(x, y, 10.0, labels=labels, backend="torch"))
