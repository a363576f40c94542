# SPDX-License-Identifier: Apache-2.0
"""Wheel, sdist and editable install, from a copy of the sources, and what the CLIPKIT_BUILD_* variables do on machines
with and without compilers. No build isolation and no downloads: the build tools come from the test environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE_PACKAGES = sysconfig.get_paths()["purelib"]
SOURCES = ["clipkit", "kernels", "csrc", "tools", "pyproject.toml", "setup.py", "MANIFEST.in"]
SOURCES += ["README.md", "LICENSE", "CHANGELOG.md", "Makefile"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the build tests drive a POSIX toolchain")
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)


@pytest.fixture
def sources(tmp_path):
    """A pristine copy of what an sdist is made from."""
    copy = tmp_path / "sources"
    copy.mkdir()
    for name in SOURCES:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        elif origin.exists():
            shutil.copy2(origin, copy / name)
    return copy


def environment(tmp_path, *, tools=True, **variables):
    """This process's environment; without `tools`, a PATH on which no compiler is found."""
    settled = {key: value for key, value in os.environ.items() if not key.startswith(("CLIPKIT_", "CUDA", "CXX"))}
    if not tools:
        empty = tmp_path / "empty"
        empty.mkdir(exist_ok=True)
        settled["PATH"] = str(empty)
    return {**settled, **variables}


def build(kind, sources, env):
    """Run one hook of the build backend; returns (exit code, everything it said, the file it made)."""
    out = sources.parent / "out"
    out.mkdir(exist_ok=True)
    code = f"import sys, setuptools.build_meta as backend\nprint(backend.build_{kind}(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=sources, env=env, capture_output=True, text=True
    )
    made = out / result.stdout.strip().splitlines()[-1] if result.returncode == 0 else None
    return result.returncode, result.stdout + result.stderr, made


def notes(output):
    return [line for line in output.splitlines() if line.startswith("clipkit: ")]


def test_wheel_without_compiled_part_is_pure_and_complete(sources, tmp_path):
    code, output, wheel = build("wheel", sources, environment(tmp_path, CLIPKIT_BUILD_CPU="0"))
    assert code == 0, output
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    # Every file of the packages, modules and data alike, is in it: recipes, vocabulary, licences, page templates.
    wanted = {str(path.relative_to(sources)) for path in (sources / "clipkit").rglob("*") if path.is_file()}
    wanted |= {f"clipkit/kernels/{path.name}" for path in (sources / "kernels").glob("*.py")}
    assert wanted <= names
    assert any(name.endswith(".gz") for name in wanted), "the tokenizer's vocabulary"
    assert any(name.startswith("clipkit/recipes/") and name.endswith(".yaml") for name in wanted), "recipes"
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"clipkit", "clipkit_torch"}


def test_sdist_holds_what_a_build_needs(sources, tmp_path):
    code, output, sdist = build("sdist", sources, environment(tmp_path, CLIPKIT_BUILD_CPU="0"))
    assert code == 0, output
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "csrc/merge_line.h", "csrc/cuda/merge.cu", "kernels/merge.py", "LICENSE"} <= names
    assert not any(name.endswith(".so") for name in names)


def test_auto_without_a_compiler_says_one_line_and_installs_without(sources, tmp_path):
    code, output, wheel = build("wheel", sources, environment(tmp_path, tools=False))
    assert code == 0, output
    assert wheel.name.endswith("-py3-none-any.whl")
    assert len(notes(output)) == 1
    assert "installing without the compiled part: no C++ compiler found" in notes(output)[0]


@pytest.mark.parametrize(
    "variables, reason",
    [
        ({"CLIPKIT_BUILD_CPU": "1"}, "CLIPKIT_BUILD_CPU=1, but no C++ compiler found"),
        ({"CLIPKIT_BUILD_CUDA": "1"}, "CLIPKIT_BUILD_CUDA=1, but no C++ compiler found"),
        ({"CLIPKIT_BUILD_CPU": "0", "CLIPKIT_BUILD_CUDA": "1"}, "both parts are one module"),
        ({"CLIPKIT_BUILD_CPU": "yes"}, "CLIPKIT_BUILD_CPU: got 'yes'; want 0, 1 or auto"),
    ],
)
def test_what_cannot_be_built_as_asked_fails_clearly(sources, tmp_path, variables, reason):
    code, output, _ = build("wheel", sources, environment(tmp_path, tools=False, **variables))
    assert code != 0
    assert reason in output
    assert "Traceback" not in output


@needs_compiler
def test_cuda_asked_for_without_nvcc_fails_clearly(sources, tmp_path):
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    env = environment(tmp_path, tools=False, CXX=compiler, CLIPKIT_BUILD_CUDA="1")
    code, output, _ = build("wheel", sources, env)
    assert code != 0
    assert "CLIPKIT_BUILD_CUDA=1, but no nvcc found" in output


@needs_compiler
@pytest.mark.parametrize("mode", ["auto", "1"])
def test_an_nvcc_that_cannot_say_what_it_compiles_for(sources, tmp_path, mode):
    """Too old, or broken: what `auto` is for."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    tools = {"CXX": shutil.which("false") if mode == "auto" else compiler, "CUDACXX": shutil.which("false")}
    code, output, _ = build("wheel", sources, environment(tmp_path, tools=False, **tools, CLIPKIT_BUILD_CUDA=mode))
    assert (code == 0) is (mode == "auto"), output
    wanted = {"auto": "building without the CUDA part: ", "1": "CLIPKIT_BUILD_CUDA=1, but "}[mode]
    assert f"{wanted}{shutil.which('false')} does not list what it compiles for" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("mode, succeeds", [("auto", True), ("1", False)])
def test_a_compiler_that_fails(sources, tmp_path, mode, succeeds):
    env = environment(tmp_path, tools=False, CXX=shutil.which("false"), CLIPKIT_BUILD_CPU=mode)
    env["PATH"] += os.pathsep + "/bin"  # ninja runs its commands through a shell
    env["CLIPKIT_BUILD_CUDA"] = "0"
    code, output, wheel = build("wheel", sources, env)
    assert (code == 0) is succeeds, output
    if succeeds:
        assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())
        assert "installing without it" in output
    else:
        assert "the compiled part did not build" in output


@pytest.fixture
def clean_python(tmp_path):
    """The Python of a new environment with nothing in it, not even pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    return tmp_path / "env" / "bin" / "python"


def pip_into(python, env, *arguments):
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    result = subprocess.run([*command, *arguments], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def use_installed(python, tmp_path, *, compiled=True):
    """Import what was installed, torch coming from the test environment; returns where clipkit was found."""
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    (site / "outer.pth").write_text(SITE_PACKAGES + "\n")
    code = (
        f"import torch, clipkit, clipkit.kernels{', clipkit._native' if compiled else ''}\n"
        "x = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)\n"
        "assert clipkit.clip_loss(x, x, 10.0).isfinite()\n"
        "print(clipkit.__file__)"
    )
    result = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert subprocess.run([python.with_name("clipkit"), "--help"], capture_output=True).returncode == 0
    return Path(result.stdout.strip())


def test_wheel_built_without_a_compiler_installs_and_works(sources, tmp_path, clean_python):
    """On the torch backend, and `clipkit doctor` says in a line why not on the other."""
    env = environment(tmp_path, tools=False)
    code, output, wheel = build("wheel", sources, env)
    assert code == 0, output
    pip_into(clean_python, env, str(wheel))
    assert (tmp_path / "env") in use_installed(clean_python, tmp_path, compiled=False).parents
    doctor = subprocess.run([clean_python.with_name("clipkit"), "doctor"], cwd=tmp_path, capture_output=True, text=True)
    assert doctor.returncode == 0, doctor.stderr
    said = [line.strip() for line in doctor.stdout.splitlines()]
    assert any(line.startswith("not built (a C++ compiler was missing") for line in said)
    assert any(line.startswith("cpu   cpu     not available: clipkit was installed without") for line in said)
    assert any(line.startswith("* cpu   torch   float64 float32 bfloat16 float16;") for line in said)


@needs_compiler
@pytest.mark.slow
def test_wheel_with_compiled_part_installs_and_works(sources, tmp_path, clean_python):
    env = environment(tmp_path, CLIPKIT_BUILD_CPU="1", CLIPKIT_BUILD_CUDA="0")
    code, output, wheel = build("wheel", sources, env)
    assert code == 0, output
    commands = next(sources.rglob("build.ninja")).read_text()
    assert "-march" not in commands, "one build serves every processor"
    assert "-mtune" not in commands
    assert not wheel.name.endswith("-none-any.whl")
    pip_into(clean_python, env, str(wheel))
    assert (tmp_path / "env") in use_installed(clean_python, tmp_path).parents


@needs_compiler
@pytest.mark.slow
def test_editable_install_works_from_the_checkout(sources, tmp_path, clean_python):
    """With the CUDA part where nvcc is: it must import on machines without a GPU, without a driver."""
    cuda = {
        "CLIPKIT_BUILD_CUDA": "1" if shutil.which("nvcc") else "0",
        "CLIPKIT_CUDA_ARCHS": "90a",
        "NVCC_THREADS": "2",
    }
    env = environment(tmp_path, CLIPKIT_BUILD_CPU="1", PYTHONPATH=SITE_PACKAGES, **cuda)
    pip_into(clean_python, env, "--no-build-isolation", "--editable", str(sources))
    assert sources in use_installed(clean_python, tmp_path).parents
    code = "from clipkit import _native; print(_native.build_info()['cuda_archs'])"
    result = subprocess.run([str(clean_python), "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.strip() == ("90a" if shutil.which("nvcc") else ""), result.stderr
