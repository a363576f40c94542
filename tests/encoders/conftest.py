# SPDX-License-Identifier: Apache-2.0
"""These models are too small for two threads: with other work on the cores, the threads would mostly wait."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
