# SPDX-License-Identifier: Apache-2.0
"""nvcc compiles csrc/cuda for every architecture we build for, without spills and within 64 registers. No GPU needed.

One nvcc per file compiles all architectures, two at a time.
"""

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOPPER = "hopper_"
"""Files of this name are for sm_90a alone, and are held to budgets of their own elsewhere."""
SOURCES = sorted(path for path in (ROOT / "csrc" / "cuda").glob("*.cu") if not path.name.startswith(HOPPER))
ARCHS = ["80", "89", "90a", "100a", "120a"]
REGISTERS = 64
"""What launch.h leaves to each thread of 1024 on a multiprocessor."""
SHARED_BYTES = 48 * 1024
"""Static shared memory that every architecture has without asking."""

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


class Kernel(NamedTuple):
    name: str
    arch: str
    spilled_bytes: int
    registers: int
    shared_bytes: int


@functools.cache
def known_archs():
    listing = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return [arch for arch in ARCHS if f"sm_{arch.rstrip('a')}" in listing]


def compile_for_all(source, folder):
    """The kernels of a file, once for each architecture, as ptxas reports them."""
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in known_archs()]
    command = ["nvcc", "-std=c++17", "-O3", "-fatbin", *codes, "--threads", "2", "-Xptxas", "-v", f"-I{ROOT / 'csrc'}"]
    result = subprocess.run(
        [*command, str(source), "-o", str(folder / "out.fatbin")], capture_output=True, text=True, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr, result.stderr
    return [parse(report) for report in re.split(r"Compiling entry function ", result.stderr)[1:]]


def parse(report):
    name, arch = re.match(r"'(\w+)' for 'sm_(\w+)'", report).groups()
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes spill", report))
    shared = re.search(r"(\d+) bytes smem", report)
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    return Kernel(name, arch, spilled, registers, int(shared[1]) if shared else 0)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_every_kernel_keeps_to_its_budget_on_every_architecture(source, tmp_path):
    kernels = compile_for_all(source, tmp_path)
    instances = len(re.findall(r"^template const char\* clipkit::run_on_device", source.read_text(), re.M))
    assert len(kernels) == instances * len(known_archs())
    for kernel in kernels:
        print(f"{kernel.arch:>5} {kernel.registers:3} registers {kernel.shared_bytes:6} bytes shared  {kernel.name}")
    assert [kernel for kernel in kernels if kernel.spilled_bytes] == []
    assert [kernel for kernel in kernels if kernel.registers > REGISTERS] == []
    assert [kernel for kernel in kernels if kernel.shared_bytes > SHARED_BYTES] == []


def test_the_budget_test_sees_a_spill(tmp_path):
    """A kernel that cannot keep what it needs in registers must not pass."""
    body = "".join(f"v[{i}] = in[i + {i}] * v[{(i * 7 + 3) % 64}];" for i in range(64))
    text = (
        "__global__ void __launch_bounds__(1024) greedy(const double* in, double* out, int n) { double v[64] = {};\n"
        f"for (int i = 0; i < n; ++i) {{ {body} }}\n"
        "for (int k = 0; k < 64; ++k) out[k * 1024 + threadIdx.x] = v[k]; }\n"
    )
    (tmp_path / "greedy.cu").write_text(text)
    assert any(kernel.spilled_bytes for kernel in compile_for_all(tmp_path / "greedy.cu", tmp_path))
