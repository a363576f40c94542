# SPDX-License-Identifier: Apache-2.0
"""nvcc compiles csrc/cuda for every architecture we build for, without spills; no GPU is needed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHS = ["80", "89", "90a", "100a", "120a"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_cuda_source_compiles_without_spills(source, arch, tmp_path):
    listing = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    if f"sm_{arch.rstrip('a')}" not in listing:
        pytest.skip(f"this nvcc does not know sm_{arch}")
    command = ["nvcc", "-std=c++17", "-O3", "-cubin", f"-arch=sm_{arch}", "-Xptxas", "-v", f"-I{ROOT / 'csrc'}"]
    result = subprocess.run(
        [*command, str(source), "-o", str(tmp_path / "out.cubin")], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", result.stderr)]
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", result.stderr)]
    assert registers, result.stderr
    assert not any(spills)
    assert max(registers) <= 64
