# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is complete or it does not count; reading one runs no foreign code."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch

from clipkit.train import dcp
from clipkit.train.checkpoint import MARKER, CheckpointStore, complete_checkpoints, load_newest, set_aside, step_folder
from clipkit.train.runtime import Runtime


def tensors(value):
    return {"model.weight": torch.full((3, 2), float(value)), "optimizer.weight.step": torch.tensor(float(value))}


def save_steps(folder, steps, **options):
    store = CheckpointStore(folder, Runtime(), **{"keep_last": 2, **options})
    for step in steps:
        store.save(step, tensors(step), {"step": step})
    store.finish()


def steps_in(folder):
    return [checkpoint.step for checkpoint in complete_checkpoints(folder)]


def read(folder, step):
    target = tensors(-1)
    dcp.load_tensors(target, step_folder(folder, step), None)
    return target["model.weight"][0, 0].item()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_keeps_the_last_k_and_reads_them_back(tmp_path, asynchronous):
    save_steps(tmp_path, [10, 20, 30], asynchronous=asynchronous)
    assert steps_in(tmp_path) == [30, 20]
    assert read(tmp_path, 30) == 30
    assert not step_folder(tmp_path, 10).exists()


def test_asynchronous_save_holds_the_values_of_its_moment(tmp_path):
    store = CheckpointStore(tmp_path, Runtime(), keep_last=1, asynchronous=True)
    live = tensors(1)
    store.save(1, live, {})
    live["model.weight"].fill_(2)
    store.finish()
    assert read(tmp_path, 1) == 1


def test_the_newest_complete_one_is_never_deleted(tmp_path):
    save_steps(tmp_path, [10], keep_last=1)
    broken = step_folder(tmp_path, 20)
    broken.mkdir()
    (broken / "state.json").write_text("{}")
    assert steps_in(tmp_path) == [10]
    save_steps(tmp_path, [30], keep_last=1)
    assert steps_in(tmp_path) == [30]
    assert not broken.exists(), "what a kill left behind is cleared by the next complete save"


@pytest.mark.parametrize("harm", ["no marker", "marker cut", "file cut", "file gone", "empty marker"])
def test_an_incomplete_one_is_skipped_with_its_reason(tmp_path, caplog, harm):
    save_steps(tmp_path, [10, 20])
    newest = step_folder(tmp_path, 20)
    data = next(newest.glob("*.distcp"))
    if harm == "no marker":
        (newest / MARKER).unlink()
    elif harm == "marker cut":
        (newest / MARKER).write_text((newest / MARKER).read_text()[:20])
    elif harm == "empty marker":
        (newest / MARKER).write_text("")
    elif harm == "file cut":
        os.truncate(data, data.stat().st_size - 1)
    else:
        data.unlink()
    assert steps_in(tmp_path) == [10]
    assert "skipping checkpoint step-00000020" in caplog.text


def test_an_unreadable_one_gives_way_to_the_one_before(tmp_path, caplog):
    """Damage that no size shows: the tensor file's bytes are gone."""
    save_steps(tmp_path, [10, 20])
    data = next(step_folder(tmp_path, 20).glob("*.distcp"))
    data.write_bytes(bytes(data.stat().st_size))
    target = tensors(-1)
    chosen = load_newest(
        complete_checkpoints(tmp_path), Runtime(), lambda one: dcp.load_tensors(target, one.path, None)
    )
    assert chosen.step == 10
    assert target["model.weight"][0, 0] == 10
    assert "step-00000020 cannot be read" in caplog.text


def test_if_none_can_be_read_that_is_an_error(tmp_path):
    save_steps(tmp_path, [10])

    def refuse(_):
        raise OSError("no disk")

    with pytest.raises(ValueError, match="step-00000010"):
        load_newest(complete_checkpoints(tmp_path), Runtime(), refuse)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def test_metadata_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_steps(tmp_path, [10])
    path = step_folder(tmp_path, 10)
    (path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(Exception, match="may not contain"):
        dcp.tensor_names(path)
    with pytest.raises((dcp.CheckpointIOError, pickle.UnpicklingError)):  # torch 2.9 loses the reason on the way
        read(tmp_path, 10)
    assert not (tmp_path / "evil-was-here").exists()


def test_entries_that_are_no_tensors_or_lie_outside_are_refused(tmp_path):
    save_steps(tmp_path, [10])
    path = step_folder(tmp_path, 10)
    metadata = dcp.SafeReader(path).read_metadata()
    entry = next(iter(metadata.storage_data.values()))
    entry.relative_path = "../../elsewhere"
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="outside"):
        dcp.tensor_names(path)
    torch.distributed.checkpoint.save({"a": object}, checkpoint_id=tmp_path / "bytes", no_dist=True)
    with pytest.raises(pickle.UnpicklingError, match="BytesStorageMetadata"):
        dcp.tensor_names(tmp_path / "bytes")


def test_setting_aside_loses_nothing(tmp_path):
    for content in ("first", "second"):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "note").write_text(content)
        set_aside(tmp_path / "run", "old")
    assert (tmp_path / "run.old-1" / "note").read_text() == "first"
    assert (tmp_path / "run.old-2" / "note").read_text() == "second"


def test_marker_lists_every_file_with_its_size(tmp_path):
    save_steps(tmp_path, [10])
    path = step_folder(tmp_path, 10)
    listed = json.loads((path / MARKER).read_text())["files"]
    assert {".metadata", "state.json"} < set(listed)
    assert all((path / name).stat().st_size == size for name, size in listed.items())
