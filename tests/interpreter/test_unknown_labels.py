# SPDX-License-Identifier: Apache-2.0
"""On a device nobody looks at labels beforehand: one that does not exist is NaN in the loss, and no other row's."""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import interpreter_worker as worker
from tests.interpreter import sweep_cases

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")


def swept(place: int | None, label: int) -> tuple[torch.Tensor, ...]:
    """The sweep of a classifier of 70 labels whose entry `place` is `label` instead (None: is left out)."""
    from clipkit.kernels.sigmoid_sweep import labelled_sigmoid_sweep

    given = sweep_cases.labelled("unit", 9, 70, 10, torch.float32)
    row = 3  # of three labels and a repeated one
    start, end = given["target_offsets"][row : row + 2].tolist()
    assert end - start == 4
    if place is None:
        given["target_indices"] = torch.cat(
            [given["target_indices"][: start + 1], given["target_indices"][start + 2 :]]
        )
        given["target_offsets"][row + 1 :] -= 1
    else:
        given["target_indices"][start + place] = label
    return tuple(labelled_sigmoid_sweep(**given))


@pytest.fixture(scope="module")
def pool():
    with worker.start() as executor:
        yield executor


@pytest.mark.parametrize("label", [70, 75, -1, -70, 2**40])
def test_a_label_that_does_not_exist_is_nan_in_the_loss_and_nobodys_positive(pool, label):
    loss, *gradients = worker.in_worker(pool, swept, 1, label)
    _, *wanted = worker.in_worker(pool, swept, None, 0)
    assert loss.isnan()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients, wanted, strict=True))


def test_labels_that_exist_are_not(pool):
    assert worker.in_worker(pool, swept, 1, 69)[0].isfinite()
