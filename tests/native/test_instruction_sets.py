# SPDX-License-Identifier: Apache-2.0
"""Code for wider vectors than the processor has must never run: what each instruction set's object file holds."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
# Without optimisation nothing is inlined but what says that it must be.
FLAGS = {"portable": [], "avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]}

pytestmark = pytest.mark.skipif(
    COMPILER is None or shutil.which("nm") is None or platform.system() != "Linux", reason="no C++ compiler, or no nm"
)


def symbols(name, flags, folder):
    """(kind, symbol) of everything that the object file defines or wants."""
    target = folder / "passes.o"
    source = ROOT / "csrc" / "cpu" / f"passes_{name}.cpp"
    options = ["-std=c++17", "-O0", "-fno-exceptions", f"-I{ROOT / 'csrc'}", *flags]
    subprocess.run([*COMPILER.split(), *options, "-c", str(source), "-o", str(target)], check=True)
    lines = subprocess.run(["nm", "-C", str(target)], check=True, capture_output=True, text=True).stdout.splitlines()
    return [tuple(line[17:].split(" ", 1)) for line in lines]


@pytest.mark.parametrize("name", FLAGS)
def test_nothing_compiled_for_one_instruction_set_can_be_linked_for_another(name, tmp_path):
    """A weak symbol, such as an inline function of the standard library, is taken from whichever file comes first."""
    if FLAGS[name] and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("another kind of processor")
    found = symbols(name, FLAGS[name], tmp_path)
    assert [symbol for kind, symbol in found if kind in "TVWu"] == [f"clipkit::{name}_passes()"]
    assert any(f"clipkit::{name}::" in symbol for kind, symbol in found if kind == "t")


@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_without_the_flags_there_are_no_passes(name, tmp_path):
    """A compiler that does not know the instructions, or another kind of processor."""
    found = symbols(name, [], tmp_path)
    assert [symbol for _, symbol in found] == [f"clipkit::{name}_passes()"]
