# SPDX-License-Identifier: Apache-2.0
"""Compiles Triton kernels for a GPU that is not here and reads the result: run as a program, one JSON line per request.

A process of its own, because the interpreter tests switch triton over for a whole process, and because compilation of
one architecture may bring the compiler down.
"""

from __future__ import annotations

import collections
import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def compile_kernel(request: dict[str, Any]) -> dict[str, Any]:
    """Request: module, kernel, signature {argument: type}, constants, arch, warps, stages. Answer: registers, stack
    bytes, shared bytes, threads, and how often each opcode of interest occurs."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(request["module"]), request["kernel"])
    signature = {name: request["signature"].get(name, "constexpr") for name in function.arg_names}
    constants = {(function.arg_names.index(name),): value for name, value in request["constants"].items()}
    # Pointers and row strides of real launches are multiples of 16: what the launcher would specialise on.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(function.arg_names)
        if name in request["divisible"]
    }
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": request["warps"], "num_stages": request["stages"], "enable_fp_fusion": True}
    target = GPUTarget("cuda", request["arch"], 32)
    compiled = triton.compile(source, target=target, options=options)
    return {
        "shared": compiled.metadata.shared,
        "threads": 32 * request["warps"],
        **inspect_binary(compiled.asm["cubin"]),
    }


def inspect_binary(cubin: bytes) -> dict[str, Any]:
    """Registers, stack and opcode counts of one cubin, by the cuobjdump that triton brings along."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    registers = re.search(r"REG:(\d+)", usage)
    stack = re.search(r"STACK:(\d+)", usage)
    assert registers is not None
    assert stack is not None
    opcodes = collections.Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", sass, re.M))
    families: collections.Counter[str] = collections.Counter()
    for opcode, count in opcodes.items():
        families[opcode.split(".")[0]] += count
        if opcode.startswith("MUFU."):
            families[opcode.split(".f")[0]] += count
    return {"registers": int(registers.group(1)), "stack": int(stack.group(1)), "opcodes": dict(families)}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(compile_kernel(json.loads(line))), flush=True)
