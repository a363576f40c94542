# SPDX-License-Identifier: Apache-2.0
"""Careless input on a card: what tests/engine/test_bad_input.py asks of the CPU's backends, by Triton and by the
default. Triton compiles for each width and type anew, so it gets one of each here; others are in test_sweeps_gpu.py.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.engine.test_bad_input import NEEDS_NEGATIVES, ROWS, TOLERANCE, check, every_loss, matrices, on
from tests.reference.cases import value_and_gradients

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
every_backend = pytest.mark.parametrize("backend", [None, pytest.param("triton", marks=needs_triton)])


def card_case(case, rows=ROWS, width=7, dtype=torch.bfloat16):
    """(inputs, constants) on the card."""
    return ({name: value.cuda() for name, value in values.items()} for values in case.make(rows, width, dtype))


@every_backend
@every_loss
def test_one_nan_in_any_tower_is_nan_in_the_loss_and_in_its_own_gradient(case, backend):
    inputs, constants = card_case(case)
    for name, features in matrices({**inputs, **constants}).items():
        broken = features.clone()
        broken[3, 5] = torch.nan
        changed = ({**values, **({name: broken} if name in values else {})} for values in (inputs, constants))
        result = value_and_gradients(on(case, backend), *changed)
        assert result["loss"].isnan(), name
        assert name not in inputs or result[name][3, 5].isnan(), name


@every_backend
@every_loss
def test_strided_views_equal_a_copy(case, backend):
    inputs, constants = card_case(case)
    views = {name: value.T.contiguous().T if value.dim() == 2 else value for name, value in inputs.items()}
    assert torch.equal(*(on(case, backend)(**given, **constants) for given in (views, inputs)))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows, width", [(1, 13), (37, 1), (37, 7)])
@every_loss
def test_one_row_and_widths_that_are_no_multiple_of_eight(case, rows, width, dtype):
    if rows == 1 and case.name in NEEDS_NEGATIVES:
        pytest.skip("this loss has no value without negatives")
    check(case, None, *card_case(case, rows, width, dtype), TOLERANCE[dtype])


@needs_triton
@every_loss
def test_a_width_that_is_no_multiple_of_eight_on_triton(case):
    check(case, "triton", *card_case(case), TOLERANCE[torch.bfloat16])


@needs_triton
@every_loss
def test_float64_on_a_kernel_is_refused(case):
    inputs, constants = card_case(case, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"backend: got 'triton' for torch.float64 tensors on cuda"):
        on(case, "triton")(**inputs, **constants)


@every_loss
def test_the_backend_of_another_device_is_refused(case):
    inputs, constants = card_case(case)
    with pytest.raises(ValueError, match=r"backend: got 'cpu' for torch.float32 tensors on cuda"):
        on(case, "cpu")(**inputs, **constants)


@every_loss
def test_towers_on_two_devices_are_refused(case):
    inputs, constants = card_case(case)
    given = {**inputs, **constants}
    for name in list(matrices(given))[:2]:
        with pytest.raises(ValueError, match="got a tensor on "):
            case.ours(**{**given, name: given[name].cpu()})
