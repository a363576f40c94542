# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel in every shipped configuration, compiled for cards that are not here. What the compiler made of
it is held to budgets: no spills, registers, shared memory, tensor-core instructions, one exponential per logit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")

from clipkit.kernels import config  # noqa: E402
from clipkit.kernels.tile_table import ANY  # noqa: E402

ARCHS = [80, 90, 100, 120]
# Shared memory one block may have, by compute capability (CUDA programming guide), in bytes. Card families that run a
# row of the table but have less are held to the smaller figure: sm_89's 99 KB does not hold for sm_80's row, so it is
# listed under the row it gets.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
MATRIX_INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
# Registers per thread, a little above what triton 3.9 needs; triton 3.6 takes more. 255 is where spilling starts.
RECENT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
STATISTICS_REGISTERS = {80: 200, 90: 224, 100: 224, 120: 200} if RECENT else dict.fromkeys(ARCHS, 255)

POINTERS = {"x", "y", "scale", "row_sums", "column_sums", "offsets", "sums", "log_sum", "suspect"}
STATISTICS_SIGNATURE = {
    **dict.fromkeys(["scale", "row_sums", "column_sums", "offsets"], "*fp32"),
    **dict.fromkeys(["rows", "columns", "x_stride", "y_stride", "diagonal"], "i32"),
}
MERGE_SIGNATURE = {
    **dict.fromkeys(["sums", "offsets", "reference_state", "total_state", "largest_state", "log_sum"], "*fp32"),
    "suspect": "*i8",
    **dict.fromkeys(["lines", "tiles", "offset_line_stride", "offset_tile_stride"], "i32"),
}
REPAIR_SIGNATURE = {
    "scale": "*fp32",
    "suspect": "*i8",
    "log_sum": "*fp32",
    **dict.fromkeys(["rows", "columns", "x_stride", "y_stride", "diagonal"], "i32"),
}


@pytest.fixture(scope="module")
def compile_kernel(tmp_path_factory):
    """Requests to one compiler process (aot_compiler.py): its words on stderr are in the failure."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton-cache"))
    log = tmp_path_factory.mktemp("aot") / "stderr"
    with log.open("w") as stderr:
        program = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("aot_compiler.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
        )

        def request(**fields):
            program.stdin.write(json.dumps(fields) + "\n")
            program.stdin.flush()
            answer = program.stdout.readline()
            assert answer, f"the compiler process died:\n{log.read_text()[-3000:]}"
            return json.loads(answer)

        yield request
        program.stdin.close()
        program.wait(timeout=30)


def statistics(compile_kernel, arch, dtype, tile, *, even, width=512, without_diagonal=False):
    return compile_kernel(
        module="clipkit.kernels.tile_statistics",
        kernel="tile_statistics",
        signature={**STATISTICS_SIGNATURE, "x": f"*{dtype}", "y": f"*{dtype}"},
        constants={
            "WIDTH": width,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
            "PRECISION": "ieee",
            "GROUP": tile.group,
            "EVEN_M": even,
            "EVEN_N": even,
            "WITHOUT_DIAGONAL": without_diagonal,
        },
        divisible=[*POINTERS, "x_stride", "y_stride", *(["rows", "columns"] if even else [])],
        arch=arch,
        warps=tile.warps,
        stages=tile.stages,
    )


def check_budget(result, arch, registers):
    assert result["stack"] == 0, "registers spill to local memory"
    assert not {"STL", "LDL"} & result["opcodes"].keys(), "registers spill to local memory"
    assert result["registers"] <= registers
    assert result["registers"] * result["threads"] <= 65536, "one block does not fit a multiprocessor"
    assert result["shared"] <= SHARED_LIMIT[arch]


def tile_for(arch, dtype, kind="statistics"):
    return config.best_row(kind, arch, 32 if dtype == "fp32" else 16, ANY).tile


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype, even", [("bf16", True), ("bf16", False), ("fp16", True), ("fp32", False)])
def test_statistics_kernel_keeps_its_budget(compile_kernel, arch, dtype, even):
    tile = tile_for(arch, dtype)
    result = statistics(compile_kernel, arch, dtype, tile, even=even)
    check_budget(result, arch, STATISTICS_REGISTERS[arch])
    exponentials = result["opcodes"]["MUFU.EX2"]
    assert exponentials == tile.block_m * tile.block_n // result["threads"], "one exponential per logit"
    assert "MUFU.LG2" not in result["opcodes"], "logarithms belong to the merge"
    if dtype != "fp32":
        assert MATRIX_INSTRUCTION[arch] in result["opcodes"]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_width_that_is_no_multiple_of_a_block_keeps_the_budget(compile_kernel, arch):
    tile = tile_for(arch, "fp16")
    result = statistics(compile_kernel, arch, "fp16", tile, even=False, width=664, without_diagonal=True)
    check_budget(result, arch, STATISTICS_REGISTERS[arch])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("first, last", [(True, True), (False, True)])
def test_merge_kernel_keeps_its_budget(compile_kernel, arch, first, last):
    result = compile_kernel(
        module="clipkit.kernels.merge",
        kernel="merge_partials",
        signature=MERGE_SIGNATURE,
        constants={"LINES_PER_OFFSET": 128, "BLOCK": 128, "FIRST": first, "LAST": last},
        divisible=[*POINTERS, "lines"],
        arch=arch,
        warps=4,
        stages=3,
    )
    check_budget(result, arch, registers=64)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_repair_kernel_keeps_its_budget(compile_kernel, arch, dtype):
    tile = tile_for(arch, dtype, "repair")
    result = compile_kernel(
        module="clipkit.kernels.repair",
        kernel="repair_rows",
        signature={**REPAIR_SIGNATURE, "x": f"*{dtype}", "y": f"*{dtype}"},
        constants={
            "WIDTH": 512,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
            "PRECISION": "ieee",
            "WITHOUT_DIAGONAL": True,
        },
        divisible=[*POINTERS, "x_stride", "y_stride"],
        arch=arch,
        warps=tile.warps,
        stages=tile.stages,
    )
    check_budget(result, arch, registers=224)
