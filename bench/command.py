# SPDX-License-Identifier: Apache-2.0
"""What `clipkit bench` does with its options: plan, measure, print, record, draw."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from bench import record
from bench.figure import draw, figure_path
from bench.ours import backends
from bench.peers import Variant, all_peers
from bench.plan import Plan, chosen_plan, default_plan, quick_plan
from bench.suite import Suite
from bench.table import HEAD, line, not_measured, target_lines
from bench.targets import judge
from clipkit.errors import value_error


def run(options: argparse.Namespace) -> int:
    """Measure (or only draw), and say where the result lies."""
    if options.draw:
        return _redraw(options.draw, options.out)
    device = _device(options.device)
    plan = _plan(options, device)
    variants = [*backends(options.backends, device), *_peers(options.peers)]
    print(
        f"{len(plan.cases)} cases on {record.device_name(device)}, at most about {plan.budget:.0f} s\n{HEAD}",
        flush=True,
    )
    suite = Suite(list(plan.cases), variants, device, plan.budget, plan.compiled, _say)
    body: dict[str, Any] = {
        "settings": {
            name: value for name, value in vars(options).items() if isinstance(value, (str, int, float, list))
        },
        "started": record.environment(device),
        "packages": {variant.name: variant.version for variant in variants},
        "remarks": {variant.name: variant.remark for variant in variants if variant.remark},
    }

    def save() -> Path:
        body.update(stopped=suite.stopped, targets=judge(suite.rows, device), rows=suite.rows)
        name, folder = "quick" if options.quick else "", options.out or record.RESULTS
        return record.write(name, _command(), body, device=device, folder=folder)

    suite.save = save
    suite.run()
    path = save()
    _report(body)
    print(f"wrote {path}")
    if not options.quick:
        _redraw(path, options.out)
    return 1 if suite.stopped else 0


def _say(row: dict[str, Any]) -> None:
    if row["seconds"]:
        print(line(row), flush=True)


def _report(body: dict[str, Any]) -> None:
    for title, lines in (
        ("not measured", not_measured(body["rows"])),
        ("remarks", [f"{name}: {remark}" for name, remark in body["remarks"].items()]),
        ("targets", target_lines(body["targets"])),
        ("stopped", [body["stopped"]] if body["stopped"] else []),
    ):
        if lines:
            print(f"\n{title}:")
            for words in lines:
                print(f"  {words}")
    print()


def _redraw(path: Path, out: Path | None) -> int:
    """The figure of a result file: the README's, or one beside the result where that was asked to be elsewhere."""
    if not path.is_file():
        raise FileNotFoundError(f"--draw: got {path}, which is no file; want a result that clipkit bench wrote")
    result = json.loads(path.read_text(encoding="utf-8"))
    target = figure_path(result, out) if out else figure_path(result)
    try:
        drawn = draw(result, target)
    except ModuleNotFoundError as error:
        print(f"no figure: needs {error.name}; pip install 'clipkit-torch[bench]', then clipkit bench --draw {path}")
        return 0
    print(f"drew {target}" if drawn else "no figure: it needs three sizes of the clip loss, forward plus backward")
    return 0


def _command() -> str:
    return shlex.join(["python", "-m", "bench", *sys.argv[2 if sys.argv[1:2] == ["bench"] else 1 :]])


def _device(name: str | None) -> str:
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise value_error(
            "--device", got=repr(name), want="cpu or cuda", fix="leave it out for the card, if there is one"
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise value_error("--device", got="'cuda'", want="a CUDA device that torch sees", fix="use --device cpu")
    return name


def _plan(options: argparse.Namespace, device: str) -> Plan:
    if options.budget is not None and not options.budget > 0:
        raise value_error("--budget", got=options.budget, want="a positive number of seconds", fix="leave it out")
    asked = (options.losses, options.sizes, options.widths, options.dtypes, options.directions)
    if options.quick and any(asked):
        raise value_error("--quick", got="with other choices of cases", want="one of them", fix="leave --quick out")
    plan = quick_plan(device) if options.quick else default_plan(device)
    if any(asked):
        dtypes = options.dtypes or ["float32" if device == "cpu" else "bfloat16"]
        sizes = options.sizes or ([1024, 4096] if device == "cpu" else [8192, 32768])
        plan = chosen_plan(
            options.losses or ["clip"],
            sizes,
            options.widths or [512],
            dtypes,
            options.directions or ["fwd+bwd"],
            plan.budget,
        )
    return dataclasses.replace(plan, budget=options.budget or plan.budget)


def _peers(names: list[str] | None) -> list[Variant]:
    known = all_peers()
    if names is None:
        return list(known.values())
    for name in names:
        if name not in (*known, "none"):
            raise value_error(
                "--peers", got=repr(name), want=f"none, or some of {list(known)}", fix="choose from these"
            )
    return [known[name] for name in names if name != "none"]
