# SPDX-License-Identifier: Apache-2.0
"""S kept instead of computed again, on a card: the same loss and gradients, in the memory granted."""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import sweep_cases as cases

# Widths at which kernels/kept.py says that it pays; whole tiles, and rows of S that are not aligned.
PAYING = [
    (torch.float32, 512, 4096),
    (torch.float32, 96, 1001),
    (torch.bfloat16, 1280, 4096),
    (torch.float16, 1280, 1001),
]


@pytest.fixture(scope="module")
def clip_loss():
    pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")
    from clipkit.functional import clip_loss as function

    return function


def loss_and_gradients(clip_loss, dtype, width, rows, workspace):
    x, y, scale = (tensor.cuda() for tensor in cases.towers("learned", rows, rows, width, dtype))
    x, y = x.requires_grad_(), y.requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = clip_loss(x, y, scale, workspace=workspace, backend="triton")
    peak = torch.cuda.max_memory_allocated() - before
    loss.backward()
    return (loss.detach(), x.grad, y.grad), peak


@pytest.mark.parametrize("dtype, width, rows", PAYING)
def test_kept_logits_change_nothing_but_the_memory(clip_loss, dtype, width, rows):
    size = 4 * rows * rows
    loss_and_gradients(clip_loss, dtype, width, rows, size)  # compilation and the library's lazy initialisation
    kept, with_logits = loss_and_gradients(clip_loss, dtype, width, rows, size)
    computed, without = loss_and_gradients(clip_loss, dtype, width, rows, size - 1)
    for one, other in zip(kept, computed, strict=True):
        rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (1e-2, 1e-3)
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol * float(other.abs().max()))
    assert without < with_logits <= without + size + (1 << 20)


@pytest.mark.parametrize("want_y", [False, True])
@pytest.mark.parametrize("dtype, width, rows", PAYING)
def test_detached_keys_equal_float64(clip_loss, dtype, width, rows, want_y):
    arguments = cases.softmax("cone", rows, 2000, width, dtype) | {"want_y": want_y}
    ours, torchs = (
        cases.relative_errors("softmax_sweep", arguments, backend=name, device="cuda") for name in ("triton", "torch")
    )
    for mine, peer in zip(ours, torchs, strict=True):
        assert mine is None or mine <= 2 * peer + cases.TOLERANCE[dtype]
