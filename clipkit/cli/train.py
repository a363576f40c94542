# SPDX-License-Identifier: Apache-2.0
"""`clipkit train`: one process, or one of many under torchrun or srun."""

from __future__ import annotations

import argparse
import logging
import os
import sys

HELP = "train a CLIP from a configuration file"
_DIVERGED_EXIT_CODE = 3
_EPILOG = """exit codes:
  0   finished
  2   a setting, the data or a checkpoint does not fit; nothing was trained
  3   the loss became NaN or infinite
  75  stopped by SIGTERM, SIGUSR1 or Ctrl-C, everything saved; the same command goes on from there
(torchrun reports 1 for any code but 0)

many processes:  torchrun --nproc-per-node 8 -m clipkit train --config RECIPE.yaml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `clipkit train`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a YAML file, or the name of one that ships with clipkit (demo.yaml, emoji-vit.yaml, ...)",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        nargs="+",
        help="change one setting, for example optim.lr=3e-4; may be repeated",
    )
    parser.add_argument("--out", metavar="DIR", help="the run's folder (same as --set output.dir=DIR)")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto (default): go on from the newest checkpoint in the folder; never: move an earlier "
        "run there aside; PATH: a checkpoint or another run's folder",
    )
    parser.add_argument("--print-config", action="store_true", help="show the resolved configuration and stop")


def run(args: argparse.Namespace) -> int:
    """Train; the exit code says how it ended."""
    from clipkit.train.config import dump_config, load_config

    settings = [setting for group in args.settings for setting in group]
    if args.out is not None:
        settings.append(f"output.dir={args.out}")
    config = load_config(args.config, settings)
    if args.print_config:
        print(dump_config(config), end="")
        return 0
    _log_to_stderr()
    from clipkit.train.run import train
    from clipkit.train.watch import NonFiniteLossError

    try:
        return int(train(config, resume=args.resume, command=_command()).value)
    except NonFiniteLossError as error:
        print(f"clipkit train: {error}", file=sys.stderr)
        return _DIVERGED_EXIT_CODE


def _command() -> list[str]:
    """The command as a person would type it again, also when Python was started with -m."""
    return ["clipkit", *sys.argv[1:]]


def _log_to_stderr() -> None:
    """Everything worth knowing from rank 0, warnings with their rank from the others."""
    from clipkit.train.progress import ProgressAwareHandler

    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    handler = ProgressAwareHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"))
    logger = logging.getLogger("clipkit")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False
