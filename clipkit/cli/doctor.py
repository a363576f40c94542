# SPDX-License-Identifier: Apache-2.0
"""`clipkit doctor`: what is installed, which backend and attention serve which device and dtype, why another does not.

Bug reports paste this output: it names versions and hardware, no path outside the installation and no user data.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator

from clipkit.machine import processor

HELP = "say which backends work here, and why others do not"

_OPTIONAL = {
    "triton": "GPU kernels",
    "pillow": "reading pictures",
    "pyyaml": "configuration files",
    "safetensors": "exporting and loading weights",
    "tokenizers": "fast tokenizer",
    "resvg-py": "drawing the SVG picture sets",
    "open_clip_torch": "drop-in host",
    "transformers": "drop-in host",
    "flash-attn": "attention on NVIDIA GPUs",
    "flash-attn-4": "attention on Hopper and Blackwell GPUs",
    "tensorboard": "live curves",
    "wandb": "live curves",
}
_CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no options: its output is the same whatever is being asked about."""


def run(args: argparse.Namespace) -> int:
    """Print the report; exit code 1 when not even the torch backend works."""
    sections = {
        "versions": list(_versions()),
        "hardware": list(_hardware()),
        "compiled part": [_compiled_part()],
        "backends": list(_backends()),
        "attention": list(_attention()),
        "optional packages": list(_optional_packages()),
    }
    for title, lines in sections.items():
        print(f"{title}:")
        for line in lines:
            print(f"  {line}")
    return 0 if _torch_backend_works() else 1


def _versions() -> Iterator[str]:
    import torch

    import clipkit

    yield f"clipkit {clipkit.__version__}"
    yield f"python {platform.python_version()} ({platform.python_implementation()}), {platform.platform()}"
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield f"torch {torch.__version__} ({cuda})"


def _hardware() -> Iterator[str]:
    import torch

    name, flags = processor()
    known = [flag for flag in _CPU_FLAGS if flag in flags]
    yield f"cpu: {name}, {os.cpu_count()} threads, {' '.join(known) or 'no vector extension known to clipkit'}"
    yield f"torch's 16-bit products on the cpu: {', '.join(_products_of_16_bit())}"
    yield f"torch threads: {torch.get_num_threads()} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')})"
    if not torch.cuda.is_available():
        yield "gpu: none that torch can use"
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        gigabytes = card.total_memory / 2**30
        yield f"gpu {index}: {card.name}, sm_{card.major}{card.minor}, {gigabytes:.0f} GiB"


def _products_of_16_bit() -> Iterator[str]:
    """What encoders under autocast come down to."""
    from clipkit.train.precision import LOW, emulated_on_cpu

    for name, dtype in LOW.items():
        yield f"{name} {'plain loops (train in fp32 here)' if emulated_on_cpu(dtype) else 'vectorised'}"


def _compiled_part() -> str:
    """What clipkit._native holds, or why it is not there."""
    if importlib.util.find_spec("clipkit._native") is None:
        return "not built (a C++ compiler was missing or CLIPKIT_BUILD_CPU=0; CLIPKIT_BUILD_CPU=1 pip install says why)"
    try:
        native = importlib.import_module("clipkit._native")
    except ImportError as error:
        return f"built, but does not load: {error}"
    info = native.build_info()
    cuda = f"CUDA for sm_{info['cuda_archs'].replace(',', ', sm_')}" if info["cuda"] else "no CUDA"
    cpu = f"CPU passes for {native.instruction_set()}, products of bf16 on the CPU: {_bf16_products()}"
    return f"built by {info['compiler']}, {cuda}, {cpu}"


def _bf16_products() -> str:
    """Which of the paths multiplies bf16 features without rounding the logits."""
    import torch

    from clipkit.engine.cpu_backend.products import bf16_kernel

    return bf16_kernel(torch.bfloat16) or "widened"


def _backends() -> Iterator[str]:
    from clipkit.engine import dispatch

    forced = os.environ.get(dispatch.ENVIRONMENT_VARIABLE)
    if forced:
        yield f"{dispatch.ENVIRONMENT_VARIABLE}={forced} is set: it overrides the defaults below"
    for status in dispatch.report():
        mark = "*" if status.default else " "
        line = f"{mark} {status.device:<5} {status.name:<7}"
        if status.dtypes:
            line += f" {' '.join(status.dtypes)}; {', '.join(status.sweeps)}"
            yield line if status.default else f"{line}; not the default: {status.reason}"
        else:
            yield f"{line} not available: {status.reason}"
    yield "(* used unless another is asked for)"


def _attention() -> Iterator[str]:
    from clipkit.encoders.attention import DENSE, PACKED

    for table in (DENSE, PACKED):
        forced = os.environ.get(table.variable)
        if forced:
            yield f"{table.variable}={forced} is set: nothing else runs for {table.purpose}, where it cannot, an error"
        for status in table.report():
            mark = "*" if status.dtypes else " "
            reason = f"not used: {status.reason}" if status.reason and not status.dtypes else status.reason
            what = "; ".join(filter(None, (" ".join(status.dtypes), reason)))
            yield f"{mark} {status.device:<5} {table.purpose} {status.name:<12} {what}"
    yield "(for heads of 64; * used)"


def _torch_backend_works() -> bool:
    from clipkit.engine import dispatch

    return any(status.name == "torch" and status.dtypes for status in dispatch.report())


def _optional_packages() -> Iterator[str]:
    for package, purpose in _OPTIONAL.items():
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{package} not installed ({purpose})"
