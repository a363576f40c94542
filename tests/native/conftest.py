# SPDX-License-Identifier: Apache-2.0
"""The compiled part is optional: where it was not built these tests are skipped, and say so."""

from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def native() -> ModuleType:
    return pytest.importorskip(
        "clipkit._native", reason="clipkit was installed without its compiled part (clipkit doctor)"
    )
