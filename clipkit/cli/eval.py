# SPDX-License-Identifier: Apache-2.0
"""`clipkit eval`: a run's checkpoint on its evaluation sets, or on another set; on one process or under torchrun."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipkit.train.config import EvalConfig

HELP = "zero-shot classification and retrieval of a trained run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `clipkit eval`."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="the folder that clipkit train wrote")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest complete one")
    parser.add_argument("--data", metavar="DATA", help="evaluate retrieval on this set instead of the run's own")
    parser.add_argument("--captions", metavar="FILE", help="with --data: candidate captions, one per line")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        nargs="+",
        help="change a setting of the run's eval section, for example eval.batch_size=64; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, print a table, write RUN/eval.json (for the run's own sets)."""
    from clipkit.evaluate import evaluate_run
    from clipkit.train.loading import load_run
    from clipkit.train.runtime import runtime

    with runtime() as here:
        model, config, tokenizer = load_run(args.run_dir, device=here.device, step=args.step)
        step = checkpoint_step(args.run_dir, args.step)
        wanted = _sets(args, config.eval)
        metrics = evaluate_run(model, tokenizer, wanted, runtime=here)
        if here.is_main:
            print(f"{args.run_dir}, step {step}")
            print(table(metrics))
            if args.data is None:
                path = args.run_dir / "eval.json"
                path.write_text(json.dumps({"step": step, **metrics}, indent=1) + "\n", encoding="utf-8")
                print(f"written to {path}")
    return 0


def checkpoint_step(run_dir: Path, step: int | None) -> int:
    """The step that `load_run(run_dir, step=step)` reads."""
    from clipkit.train.build import CHECKPOINTS
    from clipkit.train.checkpoint import complete_checkpoints

    return complete_checkpoints(run_dir / CHECKPOINTS)[0].step if step is None else step


def table(metrics: dict[str, float]) -> str:
    """One line per set and direction: R@k or top-k in per cent, chance, numbers of queries and candidates."""
    from clipkit.report.metrics import percent

    groups: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        group, _, measure = key.rpartition("/")
        groups.setdefault(group, {})[measure] = value
    lines = []
    for group, values in groups.items():
        shown = [key for key in values if "@" in key and not key.startswith("chance")]
        if not shown:
            continue
        numbers = "  ".join(f"{key} {percent(values[key]):>7}" for key in shown)
        chance = percent(values[f"chance_{shown[0]}"])
        sizes = f"{values['queries']:,.0f} against {values['candidates']:,.0f}"
        lines.append(f"{group:<28}  {numbers}  (chance {shown[0]} {chance}; {sizes})")
    for group, values in groups.items():
        for measure, words in (("skipped", "broken, skipped"), ("unanswered", "without a right answer")):
            if values.get(measure):
                lines.append(f"{group}: {values[measure]:,.0f} {words}")
    return "\n".join(lines)


def _sets(args: argparse.Namespace, own: EvalConfig) -> EvalConfig:
    """What to evaluate on: --data, or the run's sets with --set's changes."""
    from clipkit.errors import value_error
    from clipkit.train.config import RetrievalSet, load_config

    settings = [setting for group in args.settings for setting in group]
    evaluation = load_config(args.run_dir / "config.yaml", settings).eval if settings else own
    if args.captions is not None and args.data is None:
        raise value_error("--captions", got="no --data", want="both", fix="add --data, or use --set eval.retrieval=...")
    if args.data is not None:
        entry = RetrievalSet(name=Path(args.data).stem, data=args.data, captions=args.captions)
        return replace(evaluation, retrieval=(entry,), zero_shot=())
    if not evaluation.retrieval and not evaluation.zero_shot:
        raise value_error(
            "eval", got="a run without evaluation sets", want="at least one", fix="name a set with --data DIR"
        )
    return evaluation
