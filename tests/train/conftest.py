# SPDX-License-Identifier: Apache-2.0
"""One tiny set for all trainer tests."""

from __future__ import annotations

import logging

import pytest

from tests.train import tiny


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return tiny.build_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(autouse=True)
def _logs(caplog):
    """`clipkit train` configures the package's logger; tests read it through pytest."""
    logger = logging.getLogger("clipkit")
    logger.handlers, logger.propagate = [], True
    caplog.set_level(logging.INFO, logger="clipkit")
