# SPDX-License-Identifier: Apache-2.0
"""The compiled part is optional: where it was not built these tests are skipped, and say so."""

from types import ModuleType

import pytest

from tests.native.tiles import Passes


@pytest.fixture(scope="session")
def native() -> ModuleType:
    return pytest.importorskip(
        "clipkit._native", reason="clipkit was installed without its compiled part (clipkit doctor)"
    )


@pytest.fixture(params=["avx512", "avx2", "portable"])
def passes(request, native):
    """The tile passes of each instruction set that this machine can run."""
    if request.param not in native.instruction_sets():
        pytest.skip(f"this build or this processor has no {request.param}")
    usual = native.instruction_set()
    native.use_instruction_set(request.param)
    yield Passes(native, request.param)
    native.use_instruction_set(usual)


@pytest.fixture(params=["ascending", "descending"])
def on_host(native, monkeypatch, request) -> ModuleType:
    """CUDA launches run thread after thread on the host, from the first to the last and from the last to the first: a
    thread that reads what another writes without a barrier between them gives itself away in one of the two."""
    monkeypatch.setenv("CLIPKIT_CUDA_ON_HOST", "1")
    native.set_host_order(request.param == "descending")
    yield native
    native.set_host_order(False)
