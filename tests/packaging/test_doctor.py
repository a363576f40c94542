# SPDX-License-Identifier: Apache-2.0
"""`clipkit doctor` says what a bug report needs, and nothing about the reporter."""

from pathlib import Path

import torch

from clipkit.cli import main
from clipkit.engine import dispatch


def test_doctor_names_versions_backends_and_reasons(capsys):
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert f"torch {torch.__version__}" in output
    for status in dispatch.report():
        line = next(row for row in output.splitlines() if row[4:].split()[:2] == [status.device, status.name])
        assert (line.strip()[0] == "*") is status.default
        assert status.default or status.reason in line
    assert str(Path.home()) not in output


def test_doctor_says_when_a_backend_is_forced(capsys, monkeypatch):
    monkeypatch.setenv("CLIPKIT_BACKEND", "torch")
    assert main(["doctor"]) == 0
    assert "CLIPKIT_BACKEND=torch is set" in capsys.readouterr().out
