# SPDX-License-Identifier: Apache-2.0
"""What nvcc makes of the Hopper sweep, without a card: no spills, Hopper's instructions, one exponential per logit."""

import collections
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
TARGET = "-gencode=arch=compute_90a,code=sm_90a"
LOGITS = 128  # of one thread in one tile
PAIRS_PER_ITEM = 8
PRODUCER_REGISTERS, CONSUMER_REGISTERS = 40, 232


def disassembler():
    """cuobjdump of the CUDA toolkit, or the one that triton brings along."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None:
        found = shutil.which("cuobjdump", path=Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return found


pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH"),
    pytest.mark.skipif(disassembler() is None, reason="no cuobjdump: neither CUDA's nor triton's"),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """(the compiler's words, the machine code of each kernel)."""
    cubin = tmp_path_factory.mktemp("hopper") / "hopper.cubin"
    command = ["nvcc", "-std=c++17", "-O3", "-cubin", TARGET, "-Xptxas", "-v", f"-I{CSRC}"]
    source = CSRC / "cuda" / "hopper_statistics.cu"
    result = subprocess.run([*command, source, "-o", cubin], capture_output=True, text=True, cwd=cubin.parent)
    assert result.returncode == 0, result.stderr
    listing = subprocess.run([disassembler(), "-sass", cubin], capture_output=True, text=True, check=True).stdout
    return result.stderr, re.split(r"^\s*Function : ", listing, flags=re.M)[1:]


def opcodes(code):
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.x]*)", code, re.M)


def highest_register(code):
    return max(int(number) for number in re.findall(r"\bR(\d+)\b", code))


def families(code):
    return collections.Counter(opcode.split(".")[0] for opcode in opcodes(code))


def test_two_kernels_without_spills_or_warnings(compiled):
    words, kernels = compiled
    assert len(kernels) == 2, "bfloat16 and float16"
    assert [int(count) for count in re.findall(r"(\d+) bytes (?:stack frame|spill)", words)] == [0] * 6
    # A third of 64 K registers at launch; what the roles hold later is setmaxnreg's.
    assert re.findall(r"Used (\d+) registers", words) == ["168", "168"]
    # C7508: setmaxnreg ignored; C7510 and its neighbours: multiplies made to wait for each other.
    assert not re.findall(r"warning|C75\d\d|serializ", words), words
    for code in kernels:
        assert not {"LDL", "STL"} & families(code).keys()
        assert highest_register(code) < CONSUMER_REGISTERS
        given_back = code.index("USETMAXREG.DEALLOC")
        assert highest_register(code[given_back : code.index("UCGABAR_ARV", given_back)]) < PRODUCER_REGISTERS


def test_multiplies_are_hoppers_and_keep_their_accumulators(compiled):
    for code in compiled[1]:
        multiplies = re.findall(r"HGMMA\.64x256x16\.F32\S* (R\d+), gdesc\[\w+\], (R\d+)", code)
        assert len(multiplies) == 2, "two steps of 16 in a stage of 32, in a loop that is not copied"
        assert len({register for pair in multiplies for register in pair}) == 1
        assert "HMMA" not in families(code)
        finished = code.index("WARPGROUP.DEPBAR.LE gsb0, 0x0")
        assert code.index("FMNMX") > finished, "products are read before the wait for them"


def test_roles_copies_and_barriers_are_hoppers(compiled):
    for code in compiled[1]:
        counts = collections.Counter(opcodes(code))
        assert counts["UTMALDG.2D"] == 1, "X, for this block"
        assert counts["UTMALDG.2D.MULTICAST"] == 1, "its half of Y, for both"
        assert {"USETMAXREG.TRY_ALLOC.CTAPOOL", "USETMAXREG.DEALLOC.CTAPOOL"} <= counts.keys()
        # An acquire or release at cluster scope would empty the L1 cache or wait for all memory at every stage: the
        # only fences are those of the two cluster barriers, at the kernel's ends.
        assert counts["CCTL.IVALL"] == counts["UCGABAR_WAIT"] == 2
        assert counts["MEMBAR.ALL.GPU"] == 2


def test_one_exponential_per_logit_and_few_shuffles(compiled):
    for code in compiled[1]:
        counts = collections.Counter(opcodes(code))
        rescale, exchange = 1, 4  # where the offset rises; at an item's end, one per warp of the group
        assert counts["MUFU.EX2"] == LOGITS + rescale + exchange
        assert "MUFU.LG2" not in counts, "logarithms belong to the merge"
        per_tile, per_item = 5 + 2, 32 + 16 + 8
        assert counts["SHFL.BFLY"] == per_tile + per_item
        assert (per_tile * PAIRS_PER_ITEM + per_item) / (LOGITS * PAIRS_PER_ITEM) < 0.11


def test_arithmetic_of_a_logit_stays_within_its_budget(compiled):
    """A multiply-add, a maximum, two additions: what the header's prediction counts. The rest is the ends of items and
    tiles that need masks."""
    for code in compiled[1]:
        counts = families(code)
        assert LOGITS <= counts["FFMA"] <= LOGITS + 16
        assert LOGITS <= counts["FMNMX"] <= LOGITS + 16
        column_exchange = 32 + 16 + 8 + 8
        assert counts["FADD"] <= 2 * LOGITS + column_exchange
