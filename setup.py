# SPDX-License-Identifier: Apache-2.0
"""Package list and the optional compiled part, `clipkit._native`.

Two environment variables decide what is compiled: CLIPKIT_BUILD_CPU (csrc/cpu and the bindings) and CLIPKIT_BUILD_CUDA
(csrc/cuda, bound through the same module). Each is 0 (never), 1 (build it or fail) or auto (the default: build it where
the tools are; where they are not, say so in one line and install without it). CLIPKIT_CUDA_ARCHS ("80;90a") names the
GPU architectures, MAX_JOBS the number of parallel compilers, NVCC_THREADS how many architectures each nvcc compiles at
a time (default 1).

torch is neither needed nor linked: functions take raw pointers, so one build serves every torch version.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT_CUDA_ARCHS = ("80", "89", "90a", "100a", "120a")
# PTX of the oldest architecture rides along: cards between or after the listed ones compile it when they first load it.
PTX_ARCH = "80"
# A CUDA file named hopper_* is for this architecture alone: its instructions exist on no other.
HOPPER_ARCH = "90a"
# A C++ file named *_<key>.cpp is compiled with these: code for processors that have them, called only where they do.
INSTRUCTION_SETS = {
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma",
    "avx512bf16": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mavx512bf16",
    "amx": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mavx512bf16 -mamx-tile -mamx-bf16",
}


class MissingToolError(Exception):
    """Something the compiled part needs is not on this machine; the text says what and how to get it."""


def build_mode(variable: str) -> str:
    """The value of CLIPKIT_BUILD_*: "0", "1" or "auto"."""
    mode = os.environ.get(variable, "auto").lower() or "auto"
    if mode not in ("0", "1", "auto"):
        raise SystemExit(f"{variable}: got {mode!r}; want 0, 1 or auto; unset it for auto")
    return mode


def note(message: str) -> None:
    """One line to the person who installs (pip shows it with -v, and always when the build fails)."""
    print(f"clipkit: {message}", file=sys.stderr, flush=True)


def find_program(variable: str, names: tuple[str, ...]) -> str | None:
    """The program that an environment variable names, else the first of `names` on PATH."""
    for candidate in filter(None, (os.environ.get(variable), *names)):
        # CXX may carry a launcher or flags ("ccache g++"): the first word is what must exist.
        if shutil.which(candidate.split()[0]):
            return candidate
    return None


def cpu_tools() -> dict[str, str]:
    """What compiling the bindings takes; MissingToolError names the first thing that is not there."""
    if sys.platform == "win32":
        raise MissingToolError("the compiled part builds on Linux and macOS only")
    compiler = find_program("CXX", ("c++", "g++", "clang++"))
    if compiler is None:
        raise MissingToolError("no C++ compiler found; install g++ or clang++, or set CXX")
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").is_file():
        raise MissingToolError("Python.h not found; install Python's development headers (python3-dev)")
    for module in ("pybind11", "ninja"):
        if importlib.util.find_spec(module) is None:
            raise MissingToolError(
                f"the Python package {module} is missing; pip install {module}, or drop --no-build-isolation"
            )
    return {
        "cxx": compiler,
        "python_include": include,
        "pybind_include": importlib.import_module("pybind11").get_include(),
    }


def find_nvcc() -> str:
    """nvcc from CUDACXX, CUDA_HOME or PATH; MissingToolError where there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = find_program("CUDACXX", ((f"{home}/bin/nvcc",) if home else ()) + ("nvcc",))
    if nvcc is None:
        raise MissingToolError("no nvcc found; install the CUDA toolkit, or set CUDA_HOME")
    known_archs(nvcc)
    return nvcc


def known_archs(nvcc: str) -> set[str]:
    """What an nvcc compiles for, "80" and the like; MissingToolError where it is too old or too broken to say."""
    listing = subprocess.run([*nvcc.split(), "--list-gpu-code"], capture_output=True, text=True)
    if listing.returncode != 0:
        raise MissingToolError(f"{nvcc} does not list what it compiles for; install CUDA 12 or newer")
    return {line.strip().removeprefix("sm_") for line in listing.stdout.splitlines()}


def cuda_archs(nvcc: str) -> list[str]:
    """The architectures to compile for: those asked for (all must be known), else the defaults that this nvcc knows."""
    known = known_archs(nvcc)
    asked = os.environ.get("CLIPKIT_CUDA_ARCHS", "").replace(",", ";")
    archs = [arch.strip().removeprefix("sm_").replace(".", "") for arch in asked.split(";") if arch.strip()]
    unknown = [arch for arch in archs if arch.rstrip("af") not in known]
    if unknown:
        raise SystemExit(
            f"CLIPKIT_CUDA_ARCHS: {nvcc} does not know {', '.join(unknown)}; it knows {', '.join(sorted(known))}"
        )
    return archs or [arch for arch in DEFAULT_CUDA_ARCHS if arch.rstrip("af") in known]


def decide() -> tuple[list[Extension], dict[str, str] | None, str | None]:
    """(extension modules, C++ tools, nvcc) according to the two variables and what this machine has."""
    cpu_mode, cuda_mode = build_mode("CLIPKIT_BUILD_CPU"), build_mode("CLIPKIT_BUILD_CUDA")
    if cpu_mode == "0":
        if cuda_mode == "1":
            raise SystemExit("CLIPKIT_BUILD_CUDA=1 needs CLIPKIT_BUILD_CPU=1 or auto: both parts are one module")
        return [], None, None
    nvcc = None
    try:
        tools = cpu_tools()
    except MissingToolError as missing:
        if cpu_mode == "1" or cuda_mode == "1":
            raise SystemExit(
                f"clipkit: CLIPKIT_BUILD_{'CPU' if cpu_mode == '1' else 'CUDA'}=1, but {missing}"
            ) from None
        note(f"installing without the compiled part: {missing}")
        return [], None, None
    if cuda_mode != "0":
        try:
            nvcc = find_nvcc()
        except MissingToolError as missing:
            if cuda_mode == "1":
                raise SystemExit(f"clipkit: CLIPKIT_BUILD_CUDA=1, but {missing}") from None
            note(f"building without the CUDA part: {missing}")
    sources = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.cpp"))]
    return [Extension("clipkit._native", sources, optional=cpu_mode == "auto" and cuda_mode != "1")], tools, nvcc


class NinjaBuild(build_ext):
    """Compiles csrc with ninja: C++ by the system compiler, .cu files by nvcc, the CUDA runtime linked statically."""

    def build_extension(self, ext: Extension) -> None:
        """Try what was decided; under auto, fall back to C++ only and then to nothing, saying so."""
        nvcc = NVCC
        while True:
            failure = self._run_ninja(ext, nvcc)
            if failure is None:
                return
            if nvcc is not None and build_mode("CLIPKIT_BUILD_CUDA") == "auto":
                note("the CUDA part did not compile, building without it (CLIPKIT_BUILD_CUDA=1 shows why)")
                nvcc = None
            elif ext.optional:
                note("the compiled part did not build, installing without it (CLIPKIT_BUILD_CPU=1 shows why)")
                return
            else:
                raise SystemExit(f"clipkit: the compiled part did not build\n{failure}")

    def _run_ninja(self, ext: Extension, nvcc: str | None) -> str | None:
        """Build once; None when it worked, the compiler's words when it did not."""
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve() / ("cuda" if nvcc else "cpu")
        folder.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(TOOLS or {}, nvcc, output), encoding="utf-8")
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        command = [sys.executable, "-m", "ninja", "-C", str(folder), *jobs]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return None if result.returncode == 0 else result.stdout


def instruction_flags(compiler: str, source: Path) -> str:
    """What a file needs for the instruction set in its name; nothing where the compiler has no such flags (another kind
    of processor, an old compiler): the file asks the preprocessor and then holds nothing.
    """
    flags = INSTRUCTION_SETS.get(source.stem.rpartition("_")[2], "")
    probe = [*compiler.split(), *flags.split(), "-x", "c++", "-fsyntax-only", os.devnull]
    return flags if flags and subprocess.run(probe, capture_output=True).returncode == 0 else ""


def gpu_code(source: Path, archs: list[str]) -> str:
    """nvcc's flags for what a file is compiled into; empty: it is left out."""
    if source.name.startswith("hopper_"):
        return f"-gencode=arch=compute_{HOPPER_ARCH},code=sm_{HOPPER_ARCH}" if HOPPER_ARCH in archs else ""
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return " ".join([*codes, f"-gencode=arch=compute_{PTX_ARCH},code=compute_{PTX_ARCH}"])


def nvcc_threads() -> int:
    """NVCC_THREADS, a positive number."""
    text = os.environ.get("NVCC_THREADS") or "1"
    if not text.isdecimal() or int(text) < 1:
        raise SystemExit(f"NVCC_THREADS: got {text!r}; want a number of at least 1; unset it for 1")
    return int(text)


def ninja_file(tools: dict[str, str], nvcc: str | None, output: Path) -> str:
    """The text of build.ninja. No -march: one build serves every processor, and picks its loops at run time."""
    archs = cuda_archs(nvcc) if nvcc else []
    includes = (
        " ".join(f"-I{escape(tools[key])}" for key in ("python_include", "pybind_include"))
        + f" -I{escape(ROOT / 'csrc')}"
    )
    defines = f'-DCLIPKIT_CUDA_ARCHS=\\"{",".join(archs)}\\"' + (" -DCLIPKIT_WITH_CUDA" if nvcc else "")
    defines += " -DCLIPKIT_WITH_HOPPER" if HOPPER_ARCH in archs else ""
    shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
    strip = "" if sys.platform == "darwin" else "-s"
    linker = f"{nvcc} {shared} -cudart static -Xlinker {strip}" if nvcc else f"{tools['cxx']} {shared} {strip}"
    cxx_flags = f"-std=c++17 -O3 -fPIC -fvisibility=hidden -Wall {includes} {defines}"
    lines = [
        f"rule cxx\n  command = {tools['cxx']} {cxx_flags} $isa"
        " -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n",
        f"rule cuda\n  command = {nvcc} --threads {nvcc_threads()} -std=c++17 -O3 -Xcompiler -fPIC $code"
        f" -I{escape(ROOT / 'csrc')}"
        " -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n",
        f"rule link\n  command = {linker} $in -o $out\n",
    ]
    objects = []
    for source in sorted((ROOT / "csrc").rglob("*.c*")):
        if source.suffix == ".cpp":
            rule, variable = "cxx", f"isa = {instruction_flags(tools['cxx'], source)}"
        elif source.suffix == ".cu" and nvcc and gpu_code(source, archs):
            rule, variable = "cuda", f"code = {gpu_code(source, archs)}"
        else:
            continue
        objects.append(f"{source.parent.name}_{source.name}.o")
        lines.append(f"build {objects[-1]}: {rule} {escape(source)}\n  {variable}\n")
    lines.append(f"build {escape(output)}: link {' '.join(objects)}\n")
    return "\n".join(lines)


def escape(path: Path | str) -> str:
    """A path as ninja wants it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


EXTENSIONS, TOOLS, NVCC = decide()

setup(
    packages=[*find_packages(include=["clipkit", "clipkit.*"]), "clipkit.kernels"],
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": NinjaBuild},
)
