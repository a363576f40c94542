# SPDX-License-Identifier: Apache-2.0
"""Compiles Triton kernels for a GPU that is not here and reads the result: run as a program, one JSON line a request.

A process of its own, because the interpreter tests switch triton over for a whole process, and because compilation for
one architecture may bring the compiler down.
"""

from __future__ import annotations

import collections
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.aot.launches import Launch, entry_kernels, sweep_launches


def answer(request: dict[str, Any]) -> Any:
    """{"sweep", "dtype", "shape", "arch"}: what compiling its launches gave; {"entry_kernels"}: their names."""
    if "entry_kernels" in request:
        return sorted(entry_kernels())
    launches = sweep_launches(request["sweep"], request["dtype"], tuple(request["shape"]), request["arch"])
    return [compile_launch(launch, request["arch"]) for launch in launches]


def compile_launch(launch: Launch, arch: int) -> dict[str, Any]:
    """Registers, stack bytes, shared bytes, threads, and how often each opcode occurs, with the launch's name and
    constants.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(launch["module"]), launch["kernel"])
    names = function.arg_names
    source = ASTSource(
        fn=function,
        signature=launch["signature"],
        constexprs={(names.index(name),): value for name, value in launch["constants"].items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in launch["divisible"]},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch["options"])
    return {
        "kernel": launch["kernel"],
        "signature": launch["signature"],
        "constants": launch["constants"],
        "options": launch["options"],
        "shared": compiled.metadata.shared,
        **_inspected(compiled.asm["cubin"]),
    }


def _inspected(cubin: bytes) -> dict[str, Any]:
    """inspect_binary, remembered beside triton's own cache."""
    folder = Path(os.environ["TRITON_CACHE_DIR"]) / "inspected"
    folder.mkdir(parents=True, exist_ok=True)
    remembered = folder / f"{hashlib.sha256(cubin).hexdigest()}.json"
    if not remembered.exists():
        partial = remembered.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(inspect_binary(cubin)))
        partial.replace(remembered)
    return json.loads(remembered.read_text())


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
        print(json.dumps(answer(json.loads(line))), flush=True)
