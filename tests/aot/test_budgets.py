# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel, compiled for cards that are not here from the launches its host code makes. What the compiler
made of it is held to budgets: no spills, the accounting's registers and shared memory, tensor-core instructions, as
many exponentials a logit as the formula has.

By default each sweep once an architecture, each architecture with a type and a shape of its own. All types, shapes and
architectures: CLIPKIT_AOT=full (half an hour on two cores the first time; a cache in build/aot makes it a minute).
`python -m tests.aot.compiling` prints the whole table.
"""

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'clipkit-torch[triton]'")

from clipkit.kernels import accounting
from clipkit.kernels.config import TileConfig

from tests.aot.compiling import SHAPES, Case, CompileFarm, every_case, local_accesses
from tests.aot.launches import SWEEPS

FULL = os.environ.get("CLIPKIT_AOT") == "full"
# Each architecture, type and shape at least once; sm_90 with the one that its matrix instructions are asserted for.
CHOSEN = [("bf16", "ragged", 80), ("fp16", "even", 90), ("bf16", "narrow", 100), ("fp32", "odd", 120)]
MATRIX_INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}

# Exponentials a logit of the kernels that work on tiles; the others are held to fixed figures.
EXPONENTIALS = {
    "tile_statistics": 1,
    "row_sweep": 1,
    "tile_exponential_weights": 2,  # one where only one term is there
    "tile_sigmoid_weights": 1,
    "tile_divergence": 4,
    "tile_curvature_sums": 2,
    "tile_curvature_weights": 2,
}
# Logarithms belong to the merge, but one a row is all that row_sweep has of them, and a thread holds up to eight rows.
LOGARITHMS = {"row_sweep": 8}
UNTILED_REGISTERS = 64
# Sums for weight and bias stay in registers from row to row: a third and a quarter of these.
REGISTERS = {"swiglu_norm_gradient_rows": 128, "norm_gradient_rows": 80}
# Of kernels whose block is a row: exponentials of an element.
ROW_EXPONENTIALS = {
    "swiglu_norm_rows": 1, "swiglu_norm_gradient_rows": 1, "residual_norm_rows": 0, "norm_gradient_rows": 0,
}  # fmt: skip
# The assembler stops at 128 registers, for two blocks on a multiprocessor, and puts two or three values aside for it;
# smaller tiles had as many put aside on sm_80.
LOCAL_ACCESSES = {
    ("tile_curvature_sums", "fp32", "odd", 120): 4,
    ("tile_curvature_sums", "fp32", "ragged", 80): 6,
}
# Shuffles of the statistics kernel, by architecture: all but 16 to 40 of them once a stack of up to eight tiles.
STATISTICS_SHUFFLES = {80: 80, 90: 216, 100: 460, 120: 80}
# Reductions, barriers and what the compiler keeps beside the operands; a tile of weights or of kept products
# reuses their memory.
SHARED_BESIDE_OPERANDS = 4096

CASES = every_case() if FULL else [Case(sweep, *chosen) for sweep in SWEEPS for chosen in CHOSEN]


@pytest.fixture(scope="module")
def farm():
    farm = CompileFarm(max(2, len(os.sched_getaffinity(0)) // 2))
    yield farm
    farm.close()


class _Compiled(dict):
    """Case -> future of what its launches were compiled to."""

    def __init__(self, farm):
        self.farm = farm

    def __missing__(self, case):
        self[case] = self.farm.submit(case.request())
        return self[case]


@pytest.fixture(scope="module")
def compiled(farm, request):
    """All cases that will be tested are asked for at once, so that the processes always have work."""
    futures = _Compiled(farm)
    for item in request.session.items:
        if "case" in getattr(item, "fixturenames", ()) and item.module is request.module:
            futures[item.callspec.params["case"]]
    return futures


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.sweep}-{case.dtype}-{case.shape}-sm_{case.arch}")
def test_compiled_kernels_keep_their_budgets(compiled, case):
    for result in compiled[case].result():
        check(result, case)


def check(result, case):
    name = result["kernel"]
    allowed = LOCAL_ACCESSES.get((name, case.dtype, case.shape, case.arch), 0)
    assert local_accesses(result) <= allowed, f"{name}: registers spill to local memory"
    assert result["shared"] <= accounting.card_for(case.arch).shared_per_block
    threads = 32 * result["options"]["num_warps"]
    assert result["registers"] * threads <= accounting.REGISTERS_PER_MULTIPROCESSOR
    if name not in EXPONENTIALS:
        assert result["registers"] <= REGISTERS.get(name, UNTILED_REGISTERS)
        check_rows(result, threads)
        return
    check_tile(result, case, tile_of(result), threads)


def check_rows(result, threads):
    name, opcodes = result["kernel"], result["opcodes"]
    if name in ROW_EXPONENTIALS:
        expected = ROW_EXPONENTIALS[name] * result["constants"]["BLOCK"] // threads
        assert opcodes.get("MUFU.EX2", 0) == expected, name
    if name == "turn_tokens":  # the two channels of a pair are one thread's; a table may be dealt out anew, once
        assert opcodes.get("SHFL", 0) == 0
        assert result["shared"] <= 4 * result["constants"]["BLOCK"] * result["constants"]["BLOCK_WIDTH"] // 2


def tile_of(result):
    constants, options = result["constants"], result["options"]
    sizes = (constants[f"BLOCK_{axis}"] for axis in "MNK")
    return TileConfig(*sizes, options["num_warps"], options["num_stages"])


def check_tile(result, case, tile, threads):
    name, opcodes, constants = result["kernel"], result["opcodes"], result["constants"]
    bits = 32 if case.dtype == "fp32" else 16
    operands = accounting.operand_bytes(tile, bits, case.arch)
    wide = bits == 32 or constants.get("KEEP") or constants.get("KEPT")
    stored = 4 * tile.block_m * tile.block_n if wide else 0
    assert result["shared"] <= max(operands, stored) + SHARED_BESIDE_OPERANDS
    if constants.get("SUSPECTS"):
        return  # the repair, which has next to nothing to do
    if bits == 16 and not constants.get("KEPT"):
        assert MATRIX_INSTRUCTION[case.arch] in opcodes
        if SHAPES[case.shape][2] % 16 == 0:
            assert result["shared"] >= operands, f"{name}: the loads are not pipelined"
    if name == "tile_statistics" and bits == 16:
        assert opcodes["SHFL"] <= STATISTICS_SHUFFLES[case.arch]
    exponentials = exponentials_a_logit(name, constants) * tile.block_m * tile.block_n // threads
    # A few more where scalars of the tile, or sums of a row, are exponentiated as well.
    assert exponentials <= opcodes["MUFU.EX2"] <= exponentials + 8, name
    assert opcodes.get("MUFU.LG2", 0) <= LOGARITHMS.get(name, 0), name


def exponentials_a_logit(name, constants):
    absent = [constants.get(term) is False for term in ("BY_ROW", "BY_COLUMN")]
    return EXPONENTIALS[name] - sum(absent)


def test_every_kernel_is_compiled(compiled, farm):
    launched = {result["kernel"] for case in CASES for result in compiled[case].result()}
    assert set(farm.submit({"entry_kernels": True}).result()) == launched
