# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test folder."""

from __future__ import annotations

from types import ModuleType

import pytest

from bench.peers import import_peer


def _peer(name: str) -> ModuleType:
    try:
        return import_peer(name)
    except Exception as error:
        pytest.skip(
            f"{name} does not import here ({type(error).__name__}: {error}); the comparison with it is left out"
        )


@pytest.fixture(scope="session")
def open_clip() -> ModuleType:
    """open_clip, or a visible skip where it does not import."""
    return _peer("open_clip")


@pytest.fixture(scope="session")
def timm_vision_transformer() -> ModuleType:
    """timm.models.vision_transformer, or a visible skip where it does not import."""
    return _peer("timm.models.vision_transformer")


@pytest.fixture(scope="session")
def timm_eva() -> ModuleType:
    """timm.models.eva, or a visible skip where it does not import."""
    return _peer("timm.models.eva")


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """transformers, or a visible skip where it is not installed."""
    return _peer("transformers")
