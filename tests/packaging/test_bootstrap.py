# SPDX-License-Identifier: Apache-2.0
"""tools/bootstrap.py: which torch it takes, and what it says in one line when something is missing."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bootstrap.py"


@pytest.fixture
def bootstrap():
    specification = importlib.util.spec_from_file_location("bootstrap_under_test", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class RecordedEnvironment:
    """Stands for an environment: notes what is installed and answers that torch imports once it is."""

    def __init__(self, folder, torch=None):
        self.folder, self.python, self.torch, self.installed = folder, folder / "python", torch, []

    def ask(self, code):
        return self.torch if "torch" in code else None

    def pip(self, *arguments):
        self.installed.append(arguments)
        if any(word.startswith("torch") for word in arguments):
            self.torch = "2.13.0"


@pytest.fixture
def linux(bootstrap, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(bootstrap, "need_disk", lambda *_: None)
    monkeypatch.setattr(bootstrap, "gpu_visible", lambda: False)
    return bootstrap


def test_python_3_8_can_read_it():
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_a_recent_torch_is_kept(linux, tmp_path):
    env = RecordedEnvironment(tmp_path, torch="2.11.0+cu130")
    assert linux.install_torch(env) == "2.11.0+cu130"
    assert env.installed == []


@pytest.mark.parametrize("present", [None, "2.8.1"])
def test_with_a_gpu_the_default_build_is_taken(linux, tmp_path, monkeypatch, present):
    monkeypatch.setattr(linux, "gpu_visible", lambda: True)
    env = RecordedEnvironment(tmp_path, torch=present)
    linux.install_torch(env)
    assert env.installed == [("install", "torch==2.13.0")]


def test_without_a_gpu_pip_is_used_when_it_would_take_a_cpu_build(linux, tmp_path, monkeypatch):
    monkeypatch.setattr(linux, "pip_would_take_cpu_build", lambda env: True)
    env = RecordedEnvironment(tmp_path)
    linux.install_torch(env)
    assert env.installed == [("install", "torch==2.13.0")]


@pytest.mark.parametrize("uv_finds_it", [True, False])
def test_without_a_gpu_uv_fetches_the_cpu_build_else_pip_the_default(linux, tmp_path, monkeypatch, capsys, uv_finds_it):
    env = RecordedEnvironment(tmp_path)
    commands = []

    def run(command, **_):
        commands.append(command)
        env.torch = "2.13.0+cpu" if uv_finds_it else None
        return subprocess.CompletedProcess(command, 0 if uv_finds_it else 1)

    monkeypatch.setattr(linux, "pip_would_take_cpu_build", lambda env: False)
    monkeypatch.setattr(linux.subprocess, "run", run)
    linux.install_torch(env)
    assert "--torch-backend=cpu" in commands[0]
    assert env.installed == [("install", "uv")] + ([] if uv_finds_it else [("install", "torch==2.13.0")])
    assert ("gigabytes" in capsys.readouterr().out) is not uv_finds_it


def test_an_old_python_is_told_so_in_one_line(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 8, 10))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(bootstrap.SetUpError, match=r"^Python 3\.8 is too old: install Python 3\.10 to 3\.13 .*$"):
        bootstrap.pick_python()


def test_an_old_python_gives_way_to_a_newer_one_on_path(bootstrap, monkeypatch, tmp_path):
    newer = tmp_path / "python3.12"
    newer.write_text("#!/bin/sh\n")
    newer.chmod(0o755)
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 8, 10))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bootstrap.pick_python() == newer


def test_no_disk_is_said_before_the_download(bootstrap, tmp_path):
    with pytest.raises(bootstrap.SetUpError, match=r"GB free under .* needed: free some"):
        bootstrap.need_disk(tmp_path, 1e9)


@pytest.mark.parametrize(
    "words, advice",
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("NewConnectionError: Failed to establish a new connection", "no package index answers"),
        (
            "Could not find a version that satisfies the requirement uv (from versions: none)",
            "no package index answers",
        ),
        ("SSLError(SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED", "certificate"),
        ("[Errno 13] Permission denied: '/usr/lib/python3'", "not writable"),
        ("something else", "the reason is above"),
    ],
)
def test_failed_installation_ends_in_one_line_of_advice(bootstrap, words, advice):
    assert advice in bootstrap.advice(words)
    assert "\n" not in bootstrap.advice(words)


def test_a_python_without_venv_is_told_what_to_install(bootstrap, tmp_path, monkeypatch):
    """As on a Debian without python3-venv."""
    words = b"The virtual environment was not created successfully because ensurepip is not available."
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, stdout=words))
    with pytest.raises(bootstrap.SetUpError, match="apt install python3-venv"):
        bootstrap.make_environment(tmp_path / "env")
    assert not (tmp_path / "env").exists()


def test_only_an_active_environment_is_used_as_it_is(bootstrap, tmp_path, monkeypatch):
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(variable, raising=False)
    assert bootstrap.active_environment() is None
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))  # a stale variable: nothing lives there
    assert bootstrap.active_environment() is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert bootstrap.active_environment().folder == tmp_path
