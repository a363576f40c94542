# SPDX-License-Identifier: Apache-2.0
"""All the set-up behind `make demo` and `make test`: environment, torch, clipkit, then the command itself.

Standard library only, and no syntax newer than Python 3.8: an interpreter that is too old must be told so in one line.
An active environment (virtualenv or conda) is used as it is; otherwise .venv is made beside the Makefile. CLIPKIT_VENV
names another folder for it. What is installed once is not installed again: a stamp in the environment remembers the
files that the installation was made from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 10), (3, 13)
# The torch that `make test` is pinned to where it may choose: torchvision and open_clip, which the parity tests compare
# against, belong to one torch version each.
TORCH = "2.13.0"
PEERS = ["torchvision==0.28.0", "open_clip_torch==3.3.0", "timm==1.0.31"]
TRITON = "triton==3.9.0"
OLDEST_TORCH = (2, 9)
OLDEST_PIP = 23  # older ones lack --report
GIGABYTE = 1 << 30

VERBS = {
    "demo": ["train"],
    "test": ["train", "test"],
    "test-gpu": ["train", "test"],
    "gpu": ["train", "test", "bench"],
    "bench": ["train", "test", "bench"],
    "lint": ["train", "test"],
    "type": ["train", "test"],
    "format": ["train", "test"],
}


class SetUpError(Exception):
    """Set-up cannot go on; the text is one line that says what to do."""


class Environment:
    """A Python environment to install into and run from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = ("bin/python", "Scripts/python.exe", "python.exe")
        self.python = next((folder / name for name in names if (folder / name).exists()), folder / names[0])

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run this environment's Python from the project's root, its output going to ours."""
        result = subprocess.run([str(self.python), *arguments], cwd=str(ROOT))
        if check and result.returncode != 0:
            raise SystemExit(result.returncode)
        return result

    def ask(self, code: str) -> str | None:
        """What a snippet prints; None when it fails."""
        result = subprocess.run([str(self.python), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return result.stdout.decode().strip() if result.returncode == 0 else None

    def pip(self, *arguments: str) -> None:
        """pip with its progress shown on a terminal and kept short elsewhere; a failure becomes one line of advice."""
        quiet = [] if sys.stdout.isatty() else ["--quiet"]
        command = [str(self.python), "-m", "pip", *arguments[:1], *quiet, "--disable-pip-version-check", *arguments[1:]]
        result = subprocess.run(command, cwd=str(ROOT), stderr=subprocess.PIPE)
        if result.returncode != 0:
            words = result.stderr.decode(errors="replace")
            sys.stderr.write(words[-4000:])
            raise SetUpError(advice(words))


def say(message: str) -> None:
    print("clipkit: " + message, flush=True)


def advice(words: str) -> str:
    """What to do about a failed installation, from what the installer said."""
    if re.search(r"No space left|Errno 28", words):
        return "the disk is full: free some gigabytes (or set CLIPKIT_VENV to a folder elsewhere) and run this again"
    if re.search(r"CERTIFICATE_VERIFY_FAILED|SSLError", words):
        return "the package index's certificate is not trusted here: set PIP_CERT to your organisation's bundle"
    # "from versions: none" is all that a quiet pip says when its index cannot be reached.
    if re.search(r"NewConnectionError|NameResolution|Temporary failure|Max retries|from versions: none", words):
        return "no package index answers: check the network, HTTPS_PROXY or pip's settings, and run this again"
    if "Permission denied" in words:
        return "the environment is not writable: deactivate it (a .venv is then made here) or make one of your own"
    return "installation failed, the reason is above; fix it and run this again (what is done is not done twice)"


def pick_python() -> Path:
    """This interpreter when it is new enough, else the newest suitable one on PATH."""
    mine = "Python {}.{}".format(*sys.version_info)
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return Path(sys.executable)
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found:
            return Path(found)
    if sys.version_info[:2] > NEWEST:
        say(f"{mine} is newer than what clipkit is tested with; trying it")
        return Path(sys.executable)
    raise SetUpError(f"{mine} is too old: install Python 3.10 to 3.13 and run `make PYTHON=python3.12 ...`")


def active_environment() -> Environment | None:
    """The environment the user has activated, if any."""
    folders = [os.environ[name] for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(name)]
    candidates = [Environment(Path(folder)) for folder in folders]
    return next((env for env in candidates if env.python.exists()), None)


def environment() -> Environment:
    """The environment to use: CLIPKIT_VENV, the active one, or .venv (made when it is not there)."""
    env = None if os.environ.get("CLIPKIT_VENV") else active_environment()
    if env:
        version = env.ask("import sys; print('%d.%d' % sys.version_info[:2])")
        if version is None or tuple(map(int, version.split("."))) < OLDEST:
            raise SetUpError(f"the active environment has Python {version}: clipkit needs 3.10 to 3.13")
        say(f"using the active environment {env.folder}")
    else:
        folder = Path(os.environ.get("CLIPKIT_VENV") or ROOT / ".venv").absolute()
        if not Environment(folder).python.exists():
            make_environment(folder)
        env = Environment(folder)
    if env.ask("import pip") is None:
        env.run("-m", "ensurepip", "--upgrade", check=False)
        if env.ask("import pip") is None:
            raise SetUpError(f"{env.folder} has no pip: install it there (python -m ensurepip) or deactivate it")
    if int((env.ask("import pip; print(pip.__version__)") or "0").split(".")[0]) < OLDEST_PIP:
        env.pip("install", "--upgrade", "pip")
    return env


def make_environment(folder: Path) -> None:
    """A new virtual environment, whole or not at all."""
    python = pick_python()
    say(f"making an environment in {folder}")
    result = subprocess.run([str(python), "-m", "venv", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        shutil.rmtree(str(folder), ignore_errors=True)
        words = result.stdout.decode(errors="replace")
        if "ensurepip" in words or "No module named venv" in words:
            raise SetUpError(
                f"{python} cannot make environments: install its venv package (Debian, Ubuntu: apt install "
                "python3-venv), or activate an environment of your own"
            )
        raise SetUpError(f"making {folder} failed: {(words.strip() or 'no reason given').splitlines()[-1]}")


def need_disk(folder: Path, gigabytes: float) -> None:
    """Stop before a download that cannot fit."""
    free = shutil.disk_usage(str(folder)).free / GIGABYTE
    if free < gigabytes:
        raise SetUpError(
            f"{free:.1f} GB free under {folder}, about {gigabytes:.0f} GB needed: free some, or set CLIPKIT_VENV "
            "to a folder elsewhere"
        )


def torch_version(env: Environment) -> str | None:
    """The version of an importable torch."""
    return env.ask("import torch; print(torch.__version__)")


def gpu_visible() -> bool:
    """Whether an NVIDIA driver shows a GPU."""
    if shutil.which("nvidia-smi"):
        listing = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return listing.returncode == 0 and b"GPU" in listing.stdout
    driver = Path("/proc/driver/nvidia/gpus")
    return driver.is_dir() and any(driver.iterdir())


def pip_would_take_cpu_build(env: Environment) -> bool:
    """Whether plain pip, as configured here, resolves torch to a CPU build (a local file, a mirror)."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [str(env.python), "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed"]
        command += ["--report", str(report), "torch==" + TORCH]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if done.returncode != 0 or not report.exists():
            return False
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return any(item["metadata"]["version"].endswith("+cpu") for item in items)


def install_torch(env: Environment) -> str:
    """Make sure of a torch that suits the machine; returns its version."""
    present = torch_version(env)
    if present and tuple(map(int, re.findall(r"\d+", present)[:2])) >= OLDEST_TORCH:
        say(f"torch {present} is there")
        return present
    if sys.platform != "linux":
        say("installing torch")
        env.pip("install", "torch==" + TORCH)
    elif gpu_visible():
        need_disk(env.folder, 10)
        say("installing torch for NVIDIA GPUs (a few gigabytes)")
        env.pip("install", "torch==" + TORCH)
    else:
        need_disk(env.folder, 3)
        install_cpu_torch(env)
    version = torch_version(env)
    if version is None:
        raise SetUpError(f"torch was installed but does not import: run `{env.python} -c 'import torch'` to see why")
    return version


def install_cpu_torch(env: Environment) -> None:
    """The CPU build, by whichever client finds it; the CUDA build, which runs without a GPU too, as a last resort."""
    if pip_would_take_cpu_build(env):
        say("installing torch, CPU build")
        env.pip("install", "torch==" + TORCH)
        return
    say("installing torch, CPU build, through uv")
    env.pip("install", "uv")
    command = [str(env.python), "-m", "uv", "pip", "install", "--python", str(env.python), "--torch-backend=cpu"]
    if subprocess.run([*command, "torch==" + TORCH]).returncode != 0:
        say("no CPU build of torch can be reached: taking the default one, some gigabytes larger")
        need_disk(env.folder, 10)
        env.pip("install", "torch==" + TORCH)


def install_optional(env: Environment, constraints: Path, what: str, packages: list) -> None:
    """Packages that tests skip without: a failure is one line, not the end."""
    try:
        say(f"installing {what}")
        env.pip("install", "-c", str(constraints), *packages)
    except SetUpError:
        say(f"{what} could not be installed: the tests that need it will be skipped")


def fingerprint(extras: list, torch: str) -> str:
    """A hash of everything the installation is made from."""
    digest = hashlib.sha256(json.dumps([extras, torch, sys.platform]).encode())
    files = ["pyproject.toml", "setup.py", "tools/bootstrap.py"]
    files += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file())
    for name in files:
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    for variable in ("CLIPKIT_BUILD_CPU", "CLIPKIT_BUILD_CUDA", "CLIPKIT_CUDA_ARCHS"):
        digest.update(("{}={};".format(variable, os.environ.get(variable, ""))).encode())
    return digest.hexdigest()


def set_up(verb: str) -> Environment:
    """Everything up to the point where the verb's command can run."""
    extras = VERBS[verb]
    started = time.monotonic()
    env = environment()
    torch = torch_version(env) or ""
    stamp = env.folder / ("clipkit-{}.json".format("-".join(extras)))
    remembered = {"root": str(ROOT), "files": fingerprint(extras, torch)}
    if stamp.exists() and torch and json.loads(stamp.read_text(encoding="utf-8")) == remembered:
        return env
    torch = install_torch(env)
    # Packages that depend on torch must not replace the build just chosen.
    constraints = env.folder / "clipkit-constraints.txt"
    constraints.write_text(f"torch=={torch}\n", encoding="utf-8")
    say("installing clipkit (compiling its C++ part where there is a compiler)")
    env.pip("install", "-c", str(constraints), "-e", ".[{}]".format(",".join(extras)))
    if "test" in extras:
        if sys.platform == "linux" and env.ask("import triton") is None:
            install_optional(env, constraints, "triton (kernel tests)", [TRITON])
        if (
            torch.split("+")[0] == TORCH
            and env.ask("import importlib.metadata as m; m.version('open_clip_torch')") is None
        ):
            install_optional(env, constraints, "open_clip and timm (parity tests)", PEERS)
    remembered["files"] = fingerprint(extras, torch)
    stamp.write_text(json.dumps(remembered), encoding="utf-8")
    say(f"set-up took {time.monotonic() - started:.0f} s")
    return env


def lint(env: Environment) -> None:
    env.run("-m", "ruff", "check", ".")
    env.run("-m", "ruff", "format", "--check", ".")


def check_types(env: Environment) -> None:
    env.run("-m", "mypy", "clipkit", "kernels", "bench", "tools", "setup.py")


def test(env: Environment, arguments: list) -> None:
    lint(env)
    check_types(env)
    # Threads that wait by spinning slow two cores down once several processes run: the distributed tests start four.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    env.run("-m", "pytest", "-ra", "--durations=15", *arguments)


def demo(env: Environment) -> None:
    env.run("-m", "clipkit", "data", "emoji")
    env.run("-m", "clipkit", "train", "--config", "recipes/demo.yaml")
    pages = sorted((ROOT / "runs").rglob("report.html"), key=lambda page: page.stat().st_mtime)
    if not pages:
        raise SetUpError("the run ended without a report.html under runs/: please report this with `clipkit doctor`")
    say(f"done. Open {pages[-1]}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up an environment and run one of the project's commands in it.")
    parser.add_argument("verb", choices=sorted(VERBS))
    parser.add_argument("arguments", nargs="*", help="passed on to pytest (test, test-gpu) or to the benchmark")
    options = parser.parse_args()
    try:
        env = set_up(options.verb)
        if options.verb == "demo":
            demo(env)
        elif options.verb == "test":
            test(env, options.arguments)
        elif options.verb == "test-gpu":
            env.run("-m", "pytest", "-ra", "tests/gpu", *options.arguments)
        elif options.verb == "gpu":
            env.run("-m", "tools.gpu_session", *options.arguments)
        elif options.verb == "bench":
            env.run("-m", "bench", *options.arguments)
        elif options.verb == "lint":
            lint(env)
        elif options.verb == "type":
            check_types(env)
        else:
            env.run("-m", "ruff", "check", "--fix", ".")
            env.run("-m", "ruff", "format", ".")
    except SetUpError as reason:
        sys.stderr.write(f"clipkit: {reason}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("clipkit: interrupted; run the same command again to go on\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
