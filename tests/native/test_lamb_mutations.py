# SPDX-License-Identifier: Apache-2.0
"""The tests of the CPU's LAMB can fail: each of these builds has one thing broken, and a test shows it."""

from __future__ import annotations

import ctypes
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from tests.native import test_cpu_lamb as of_passes
from tests.native import test_lamb as of_both
from tests.native.test_mutations import Mutation, library_of

MODEL = Path(__file__).with_name("broken_lamb.cpp")
TYPES = ("float32", "float16", "bfloat16")

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the broken builds want g++")


step = partial(of_passes.test_a_step_equals_float64, "paper", torch.float32)
beyond = partial(of_passes.test_nothing_beyond_a_tensor_is_touched, 5, torch.bfloat16)
skipped = of_passes.test_a_skipped_step_writes_nothing
clipped = partial(of_both.test_deepspeed_clips_the_ratio_at_both_ends, "cpu")
rounded = partial(of_both.test_weights_are_rounded_as_torch_rounds_them, "cpu")
read = partial(of_both.test_every_16_bit_gradient_is_read_exactly, "cpu")

MUTATIONS = [
    Mutation("lanes past the end summed", "cpu/lamb_passes.h", "lanes.keep(lamb_update(", "(lamb_update(", beyond),
    Mutation("every block the first", "cpu/lamb_passes.h", "j = start + offset", "j = offset", step),
    Mutation("sums kept in fp32", "cpu/lamb_passes.h", "kSummedInFloat = 2048", "kSummedInFloat = 1 << 30", step),
    Mutation("every chunk the first of its gradients", "cpu/lamb.cpp", " + chunk.first * width,", ",", step),
    Mutation("every chunk's tensor the first", "cpu/lamb.cpp", "norms + 2 * chunk.tensor", "norms", step),
    Mutation("the last chunk left out", "cpu/lamb.cpp", "number < chunks;", "number + 1 < chunks;", step),
    Mutation("the ratio clipped above only", "lamb_rule.h", "ratio < 0.01f ? 0.01f : ", "", clipped),
    Mutation("correction not in the rate", "cpu/lamb.cpp", " * correction.rate_factor", "", clipped),
    Mutation("moments of a skipped step", "cpu/lamb.cpp", "if (skipped(step)) return;", "", skipped),
    Mutation(
        "halves of bf16 rounded up", "cpu/vector_numbers.h",
        "(bits + 0x7fffu + (bits >> 16 & 1u))", "(bits + 0x8000u)", partial(rounded, torch.bfloat16),
    ),
    Mutation(
        "small fp16 flushed", "cpu/vector_numbers.h",
        "< 0x38800000u ? denormal", "< 0x38800000u ? Words{}", partial(rounded, torch.float16),
    ),
    Mutation(
        "fp16 infinity read as 65536", "cpu/vector_numbers.h",
        "magnitude < (31u << 23) ? ", "true ? ", partial(read, torch.float16),
    ),
]  # fmt: skip


def check(mutation, library):
    """Its test, on this build in place of clipkit._native."""

    def cpu_lamb(phase, dtype, tensors, count, norms, skip, multiply, *numbers):
        beta1, beta2, eps, rule, threads = numbers
        addresses = [ctypes.c_void_p(tensors), ctypes.c_int64(count), *map(ctypes.c_void_p, (norms, skip, multiply))]
        options = [ctypes.c_double(beta1), ctypes.c_double(beta2), ctypes.c_float(eps), rule, threads]
        library.cpu_lamb(phase, TYPES.index(dtype), *addresses, *options)

    with mock.patch("clipkit.engine.cpu_backend.lamb.compiled", return_value=SimpleNamespace(cpu_lamb=cpu_lamb)):
        mutation.check()


def test_what_is_not_broken_passes_every_check(tmp_path):
    library = library_of(tmp_path, None, MODEL, "cpu/lamb.cpp")
    for mutation in MUTATIONS:
        check(mutation, library)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_what_is_broken_fails_a_check(mutation, tmp_path):
    library = library_of(tmp_path, mutation, MODEL, "cpu/lamb.cpp")
    with pytest.raises(AssertionError):
        check(mutation, library)
