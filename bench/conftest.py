# SPDX-License-Identifier: Apache-2.0
"""Options of `pytest bench/`: the cases of `clipkit bench --quick`, or those asked for."""

from __future__ import annotations

import pytest

from bench.cases import Case
from bench.ours import backends
from bench.peers import Variant, all_peers
from bench.plan import chosen_plan, quick_plan


def pytest_addoption(parser: pytest.Parser) -> None:
    """As the options of `clipkit bench`, with commas between values."""
    group = parser.getgroup("clipkit")
    for name, what in (
        ("losses", "clip,siglip,..."),
        ("sizes", "rows of the batch"),
        ("widths", "width of the features"),
        ("dtypes", "float32,bfloat16,float16"),
        ("directions", "fwd,fwd+bwd"),
        ("peers", "some of the peers, or none"),
        ("backends", "clipkit's backends"),
    ):
        group.addoption(f"--{name}", default="", help=what)
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each case and each variant that has its loss."""
    if "variant" not in metafunc.fixturenames:
        return
    asked = {name: _words(metafunc.config, name) for name in ("losses", "dtypes", "directions", "peers", "backends")}
    device = metafunc.config.getoption("--device")
    sizes, widths = ([int(word) for word in _words(metafunc.config, name)] for name in ("sizes", "widths"))
    cases: list[Case] = list(quick_plan(device).cases)
    if any((asked["losses"], asked["dtypes"], asked["directions"], sizes, widths)):
        plan = chosen_plan(
            asked["losses"] or ["clip"],
            sizes or [1024],
            widths or [512],
            asked["dtypes"] or ["float32"],
            asked["directions"] or ["fwd+bwd"],
            budget=0.0,
        )
        cases = list(plan.cases)
    peers = all_peers()
    chosen = [name for name in asked["peers"] if name != "none"] if asked["peers"] else list(peers)
    variants: list[Variant] = [*backends(asked["backends"] or None, device), *(peers[name] for name in chosen)]
    pairs = [(case, variant) for case in cases for variant in variants if case.loss in variant.losses]
    metafunc.parametrize(
        "case, variant", pairs, ids=[f"{case}-{variant.name}".replace(" ", "-") for case, variant in pairs]
    )


def _words(config: pytest.Config, name: str) -> list[str]:
    return [word for word in str(config.getoption(f"--{name}")).split(",") if word]
