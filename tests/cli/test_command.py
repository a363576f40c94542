# SPDX-License-Identifier: Apache-2.0
"""The `clipkit` command itself: verbs, one-line errors, exit codes."""

from __future__ import annotations

import builtins
import subprocess
import sys

import pytest

from clipkit import cli


def test_help_lists_every_verb_and_imports_none_of_them():
    code = (
        "import sys\nfrom clipkit.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in sys.modules if m.startswith('clipkit.cli.')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(verb in out for verb in cli.VERBS)
    assert out.rstrip().endswith("[]")


def test_every_verb_has_help(capsys):
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as ending:
            cli.main([verb, "--help"])
        assert ending.value.code == 0
        assert f"clipkit {verb}" in capsys.readouterr().out


def test_an_unknown_verb_is_refused(capsys):
    with pytest.raises(SystemExit) as ending:
        cli.main(["trian"])
    assert ending.value.code == 2
    assert "trian" in capsys.readouterr().err


def test_a_users_mistake_is_one_line(capsys, tmp_path):
    assert cli.main(["eval", str(tmp_path / "nowhere")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("clipkit eval: ")
    assert "nowhere" in line


def test_a_missing_package_of_the_trainer_is_one_line(capsys, monkeypatch):
    real_import = builtins.__import__

    def without_yaml(name, *arguments, **options):
        if name == "yaml":
            raise ModuleNotFoundError("No module named 'yaml'", name="yaml")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_yaml)
    assert cli.main(["train", "--config", "recipes/emoji-vit.yaml"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "clipkit train: needs yaml; pip install 'clipkit-torch[train]'"


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    from clipkit.cli import doctor

    def broken(options):
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "broken")

    monkeypatch.setattr(doctor, "run", broken)
    with pytest.raises(UnicodeDecodeError):
        cli.main(["doctor"])


def test_a_reader_that_leaves_gets_no_traceback():
    code = (
        "import sys\nfrom clipkit import cli\nfrom clipkit.cli import doctor\n"
        "def many_lines(options):\n    for line in range(100_000):\n        print(line)\n    return 0\n"
        "doctor.run = many_lines\nsys.exit(cli.main(['doctor']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_another_pipe_that_breaks_is_no_reader_that_left(monkeypatch):
    from clipkit.cli import doctor

    def of_a_worker(options):
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr(doctor, "run", of_a_worker)
    with pytest.raises(BrokenPipeError, match="a worker's"):
        cli.main(["doctor"])
