# SPDX-License-Identifier: Apache-2.0
"""Who may know whom. Read off the syntax trees, so that lazy and type-checking imports count as well."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Room -> the rooms it may import. A room is a module or package directly under clipkit, and kernels/.
ALLOWED = {
    "errors": set(),
    "machine": set(),
    "kernels": set(),
    "engine": {"kernels", "_native", "errors"},
    "parallel": {"engine", "errors"},
    "functional": {"engine", "parallel", "errors"},
    "losses": {"functional", "parallel", "errors"},
    "integrations": {"losses", "errors"},
    "optim": {"engine", "errors"},
    "encoders": {"engine", "errors"},
    "data": {"encoders", "errors"},
    "evaluate": {"data", "encoders", "parallel", "errors"},
    "report": {"data", "evaluate", "errors"},
    "recipes": {"data", "encoders", "evaluate", "functional", "losses", "optim", "parallel", "train", "errors"},
    "train": {
        "data",
        "encoders",
        "evaluate",
        "functional",
        "losses",
        "machine",
        "optim",
        "parallel",
        "recipes",
        "report",
        "errors",
    },
    "cli": {"data", "encoders", "engine", "errors", "evaluate", "machine", "recipes", "report", "train", "_native"},
    "__main__": {"cli"},
}


def python_files():
    return sorted([*(ROOT / "clipkit").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def module_name(path):
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "clipkit")
    return parts


def imported_modules(path):
    """Dotted names of everything a file imports, relative imports resolved; `from a import b` counts as a and a.b."""
    package = module_name(path)[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def room_of(path):
    return module_name(path)[1]


def rooms_imported_by(path):
    names = {name.split(".")[1] for name in imported_modules(path) if name.startswith("clipkit.")}
    is_room = {name for name in names if name in ALLOWED or name == "_native"}
    return is_room - {room_of(path)}


def test_a_room_knows_only_the_rooms_below_it():
    broken = []
    for path in python_files():
        room = room_of(path)
        # clipkit/__init__.py resolves names lazily and imports nothing of clipkit itself.
        allowed = set() if room == "__init__" else ALLOWED.get(room)
        if allowed is None:
            broken.append(f"clipkit/{room} is a new room: say in ALLOWED what it may import")
        else:
            broken += [f"{'/'.join(module_name(path))} imports {other}" for other in rooms_imported_by(path) - allowed]
    assert broken == []


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda path: path.name)
def test_kernels_know_only_torch_triton_and_each_other(path):
    roots = {name.split(".")[0] for name in imported_modules(path)}
    assert roots <= {"torch", "triton", "clipkit", *sys.stdlib_module_names}
    attributes = {
        node.attr for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)
    }
    assert not attributes & {"autograd", "distributed", "library"}


def test_native_sources_know_neither_torch_nor_python_beyond_the_bindings():
    ours = {str(path.relative_to(ROOT / "csrc")) for path in (ROOT / "csrc").rglob("*.h")}
    for path in (ROOT / "csrc").rglob("*.[ch]*"):
        for name in re.findall(r'^\s*#include\s+[<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"), re.M):
            of_python = name.startswith("pybind11/") and path.name == "bindings.h"
            allowed = name in ours or "/" not in name or name.startswith("sys/") or of_python
            assert allowed, f"{path.name} includes {name}"
            assert not name.startswith(("torch", "ATen", "c10"))
    assert "Python.h" not in "".join(path.read_text(encoding="utf-8") for path in (ROOT / "csrc").rglob("*.[ch]*"))


def test_triton_is_imported_by_kernels_only():
    importers = {
        room_of(path)
        for path in python_files()
        if any(name.partition(".")[0] == "triton" for name in imported_modules(path))
    }
    assert importers <= {"kernels"}
