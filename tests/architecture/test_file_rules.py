# SPDX-License-Identifier: Apache-2.0
"""Files that can be read in one sitting, each under its licence, and tests that can all be collected together."""

import collections
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["clipkit", "kernels", "csrc", "tests", "tools", "bench"]
SPDX = "SPDX-License-Identifier: Apache-2.0"
SUFFIXES = {".py", ".cpp", ".h", ".cu", ".sh"}
LINES_PER_FILE = 600
LINES_OF_THE_LOOP = 250
RECIPES = ("fastclip", "evaclip", "eva_clip", "catlip", "clipkd", "clip_kd", "contrastive")


def source_lines():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    files += [ROOT / "setup.py", ROOT / "Makefile", ROOT / ".ci" / "run"]
    return [(path, path.read_text(encoding="utf-8").splitlines()) for path in sorted(files)]


def name(path):
    return "/".join(path.relative_to(ROOT).parts)


def test_every_source_file_names_its_licence():
    # An empty __init__.py has nothing to license.
    unmarked = [name(path) for path, lines in source_lines() if lines and not any(SPDX in line for line in lines[:2])]
    assert unmarked == []


def test_no_source_file_is_too_long_to_read_at_once():
    assert [f"{name(path)}: {len(lines)}" for path, lines in source_lines() if len(lines) > LINES_PER_FILE] == []


def test_the_loop_is_short_and_knows_no_recipe():
    text = (ROOT / "clipkit" / "train" / "loop.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_OF_THE_LOOP
    assert not [recipe for recipe in RECIPES if recipe in text.lower()]


def test_test_modules_outside_packages_have_unique_names():
    """pytest imports a test module that lies in no package by its bare name: two of one name cannot be collected."""
    loose = [path.name for path in (ROOT / "tests").rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    assert [name for name, count in collections.Counter(loose).items() if count > 1] == []
