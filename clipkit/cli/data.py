# SPDX-License-Identifier: Apache-2.0
"""`clipkit data`: fetch and build a real captioned-picture set."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from clipkit.data.building import Progress

HELP = "fetch and build a real captioned-picture set"
SETS = {
    "emoji": "1,594 emoji in six drawing styles, five for training, the sixth for testing (16 MB to fetch)",
    "icons": "one-colour icons whose name at least ten icon sets share, five sets held out (104 MB to fetch)",
    "stamps": "photos and clip art with sentences or titles, from two Debian packages (186 MB to fetch)",
}
MAX_SOURCES = 8  # named on the screen; ATTRIBUTION.md names them all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `clipkit data`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["sets:", *(f"  {name:7} {text}" for name, text in SETS.items())])
    parser.add_argument("set", choices=sorted(SETS), metavar="SET", help=f"one of {', '.join(SETS)}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the set goes (default: data/SET)")
    parser.add_argument("--image-size", type=int, default=32, metavar="N", help="pixels per side (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the held-out concepts (default: 0)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where downloads are kept")
    parser.add_argument(
        "--offline-cache", type=Path, metavar="DIR", help="a folder that holds the packages; fetch nothing"
    )
    parser.add_argument("--force", action="store_true", help="build again over a set that is already there")


def run(args: argparse.Namespace) -> int:
    """Build the chosen set and say what it holds."""
    started = time.monotonic()
    builder = importlib.import_module(f"clipkit.data.{args.set}")
    report = builder.build(
        args.out or Path("data") / args.set,
        image_size=args.image_size,
        seed=args.seed,
        cache=args.cache,
        offline_cache=args.offline_cache,
        force=args.force,
        progress=TerminalProgress(),
    )
    if not report.built:
        print(f"{report.folder} is already complete (--force builds it again)")
    sources = report.manifest["sources"]
    for source in sources[:MAX_SOURCES]:
        print(f"  {source['package']} {source['version']}: {source['title']}, {source['spdx']}")
    if len(sources) > MAX_SOURCES:
        print(f"  ... {len(sources)} works in all")
    for split, count in report.splits.items():
        print(f"  {split}: {count} pictures")
    print(f"  captions.txt: {report.manifest['captions']} captions")
    print(f"  licences and authors: {report.folder / 'ATTRIBUTION.md'}")
    if report.built:
        print(f"{report.folder} built in {time.monotonic() - started:.1f} s")
    return 0


class TerminalProgress(Progress):
    """Progress as lines; on a terminal a count that rewrites itself."""

    def say(self, message: str) -> None:
        """Print the line."""
        print(message, flush=True)

    def count(self, done: int, total: int) -> None:
        """Show how far the present step is."""
        if sys.stdout.isatty():
            print(f"\r  {done}/{total}", end="\n" if done == total else "", flush=True)
