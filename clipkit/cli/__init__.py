# SPDX-License-Identifier: Apache-2.0
"""The `clipkit` command. Each verb is a module of this package, imported only when it is the one asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

VERBS = {
    "train": "train a CLIP from a configuration file",
    "eval": "zero-shot classification and retrieval of a trained run",
    "search": "find the pictures nearest to a sentence",
    "data": "fetch and build a real captioned-picture set",
    "index": "index webdataset shards or a CSV",
    "export": "write a run's weights as safetensors",
    "bench": "time and memory of the losses beside their peers",
    "doctor": "say which backends work here, and why others do not",
}

_TRAINER_PACKAGES = ("PIL", "yaml", "safetensors", "tokenizers", "ftfy", "regex", "resvg_py")
"""What the [train] extra installs: one line tells who lacks it."""

_USAGE_EXIT_CODE = 2
_BROKEN_PIPE_EXIT_CODE = 128 + 13  # what a shell reports of a program that SIGPIPE ended


def build_parser(verb: str | None) -> argparse.ArgumentParser:
    """The whole parser; only `verb`'s module is imported, the others are listed by their one-line help."""
    parser = argparse.ArgumentParser(prog="clipkit", description="Contrastive image-text training, block by block.")
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for name, help_text in VERBS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        if name == verb:
            module = importlib.import_module(f"clipkit.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. A user's mistake is one line on stderr and exit code 2, never a traceback."""
    _let_waiting_threads_sleep()
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in arguments if not word.startswith("-")), None)
    options = build_parser(verb).parse_args(arguments)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_left():
            raise
        return _BROKEN_PIPE_EXIT_CODE
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _TRAINER_PACKAGES:
            raise
        print(f"clipkit {verb}: needs {error.name}; pip install 'clipkit-torch[train]'", file=sys.stderr)
        return _USAGE_EXIT_CODE
    except (ValueError, TypeError, FileNotFoundError) as error:
        if type(error) not in (ValueError, TypeError, FileNotFoundError):
            raise  # a subclass (UnicodeDecodeError, ...) is a defect of ours: keep its traceback
        print(f"clipkit {verb}: {error}", file=sys.stderr)
        return _USAGE_EXIT_CODE


def _reader_left() -> bool:
    """Whether the pipe that broke is standard output, as with `| head`: another line tells, a flush alone does not,
    since what could not be written is gone. Output then goes nowhere, or Python would fail on it again at its end.
    """
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _let_waiting_threads_sleep() -> None:
    """Before torch loads OpenMP, which by default spins at barriers: on two cores shared with another busy process,
    training then slows down several times more than with threads that sleep."""
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
