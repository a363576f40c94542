# SPDX-License-Identifier: Apache-2.0
"""`clipkit doctor` says what a bug report needs, and nothing about the reporter."""

from pathlib import Path

import torch

from clipkit.cli import main
from clipkit.encoders.attention import DENSE, PACKED
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


def test_doctor_says_which_attention_runs_and_why_another_does_not(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.split("attention:\n")[1].splitlines()
    for table in (DENSE, PACKED):
        for status in table.report():
            line = next(row for row in lines if row[4:].split()[:3] == [status.device, table.purpose, status.name])
            assert (line.strip()[0] == "*") is bool(status.dtypes)
            assert status.reason in line
            assert status.dtypes or status.reason


def test_doctor_reports_a_forced_attention_that_cannot_serve(capsys, monkeypatch):
    monkeypatch.setenv("CLIPKIT_ATTENTION", "flash_attn_2")
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "CLIPKIT_ATTENTION=flash_attn_2 is set" in output
    assert [row.split()[:3] for row in output.splitlines() if "CLIPKIT_ATTENTION=" in row and "not used" in row] == [
        ["cpu", "pictures", "torch"]
    ]
    assert "* cpu   pictures" not in output


def test_doctor_says_what_16_bit_products_are_here(capsys, monkeypatch):
    for emulated, words in (
        (False, "bf16 vectorised, fp16 v"),
        (True, "bf16 plain loops (train in fp32 here), fp16 p"),
    ):
        monkeypatch.setattr("clipkit.train.precision.emulated_on_cpu", lambda dtype, emulated=emulated: emulated)
        assert main(["doctor"]) == 0
        assert f"16-bit products on the cpu: {words}" in capsys.readouterr().out
