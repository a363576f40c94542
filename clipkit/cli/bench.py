# SPDX-License-Identifier: Apache-2.0
"""`clipkit bench`: time and memory of the losses beside their peers. The suite is in bench/ of a source checkout."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from clipkit.errors import value_error

HELP = "time and memory of the losses beside their peers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `clipkit bench`."""
    parser.add_argument("--device", help="cpu or cuda; default: the card, if there is one")
    parser.add_argument("--losses", nargs="+", metavar="LOSS", help="clip, siglip, info_nce, crd, ...")
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help="rows of the batch")
    parser.add_argument("--widths", nargs="+", type=int, metavar="D", help="width of the features")
    parser.add_argument("--dtypes", nargs="+", metavar="DTYPE", help="float32, bfloat16, float16")
    parser.add_argument("--directions", nargs="+", metavar="DIRECTION", help="fwd, fwd+bwd")
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="clipkit's backends: default, torch, cpu, ...")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="some of the peers, or none; default: all")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no further case after this long")
    parser.add_argument("--quick", action="store_true", help="a look in less than a minute; draws no figure")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write result and figure here, not into the checkout"
    )
    parser.add_argument("--draw", type=Path, metavar="RESULT", help="only draw the figure of this result file again")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, write the result file and draw the figure."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "bench" / "command.py").is_file():
        raise value_error(
            "clipkit",
            got="an installed wheel, without the benchmarks",
            want="a source checkout",
            fix="clone the repository and run `make bench` there, or `pip install -e .` and this command again",
        )
    sys.path.insert(0, str(checkout))
    return int(importlib.import_module("bench.command").run(args))
