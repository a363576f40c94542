# SPDX-License-Identifier: Apache-2.0
"""`clipkit bench` from options to files, at sizes that take no time."""

from __future__ import annotations

import json

import pytest

from clipkit import cli
from clipkit.cli import bench

STAMP = {"date", "device", "cpu", "threads", "load", "driver", "cuda", "python", "torch", "clipkit", "commit"}
ROW = {
    "loss", "N", "d", "dtype", "direction", "variant", "version", "seconds", "extra_mib", "floor_units", "floor_share",
    "reason",
}  # fmt: skip


def run(*words):
    return cli.main(["bench", "--device", "cpu", *map(str, words)])


def test_from_options_to_table_result_and_figure(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run("--sizes", 66, 96, 130, "--widths", 16, "--peers", "torch", "inf-cl", "--out", tmp_path) == 0
    said = capsys.readouterr().out
    (path,) = tmp_path.rglob("*.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    stamp = result["environment"]
    assert path.relative_to(tmp_path).parts == (stamp["device"], f"{stamp['date']}.json")
    assert set(stamp) >= STAMP
    assert result["command"].startswith("python -m bench")
    assert {"started", "settings", "packages", "remarks", "targets", "stopped"} <= set(result)
    assert all(set(row) == ROW for row in result["rows"])
    found = {(row["N"], row["variant"]): row for row in result["rows"]}
    assert {name for _, name in found} == {"clipkit", "torch", "inf-cl", "floor"}
    for size in (66, 96, 130):
        assert found[size, "clipkit"]["seconds"]["median"] > 0
        assert found[size, "inf-cl"]["reason"] == "needs CUDA"
    assert "inf-cl: needs CUDA" in said
    assert "not measured: no GPU was at hand" in said
    figure = tmp_path / "loss_scaling.svg"
    assert f"drew {figure}" in said

    figure.unlink()
    assert cli.main(["bench", "--draw", str(path), "--out", str(tmp_path)]) == 0
    assert "<!-- clipkit -->" in figure.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words, named",
    [
        (("--losses", "clap"), "loss: got 'clap'; want one of clip"),
        (("--dtypes", "float8"), "dtype: got 'float8'"),
        (("--sizes", "0"), "N: got 0; want a positive"),
        (("--directions", "bwd"), "direction: got 'bwd'; want one of fwd, fwd+bwd"),
        (("--peers", "openclip"), "--peers: got 'openclip'; want none, or some of"),
        (("--backends", "cpp"), "--backends: got 'cpp'; want default or some of"),
        (("--device", "tpu"), "--device: got 'tpu'; want cpu or cuda"),
        (("--budget", "-1"), "--budget: got -1.0"),
        (("--quick", "--sizes", "64"), "--quick: got with other choices of cases"),
        (("--draw", "nowhere.json"), "--draw: got nowhere.json"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(words, named, capsys, tmp_path):
    assert run("--out", tmp_path, *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"clipkit bench: {named}")
    assert list(tmp_path.iterdir()) == []


def test_an_installed_wheel_says_where_the_suite_is(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "clipkit" / "cli" / "bench.py"))
    assert run("--quick") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "got an installed wheel, without the benchmarks; want a source checkout" in line
