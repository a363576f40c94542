# SPDX-License-Identifier: Apache-2.0
"""Runs that start from towers of other models: the right weights on every rank, and nothing needed to go on."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from clipkit import cli
from clipkit.encoders import create_model, export_state_dict
from clipkit.train import Ending, load_config, load_run, parse_config, train
from clipkit.train.checkpoint import CheckpointStore
from clipkit.train.config import InitConfig
from clipkit.train.initialise import initialise
from clipkit.train.loading import run_tensors
from clipkit.train.runtime import Runtime, runtime
from clipkit.train.session import Session
from tests.parallel.ranks import run_on_ranks
from tests.train import tiny

HEADS = {"visual.proj", "text_projection", "logit_scale"}


@pytest.fixture(autouse=True)
def _quick_end(monkeypatch):
    """The report is tested elsewhere."""
    monkeypatch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")


def run(data, out, resume="auto", **changes):
    return train(parse_config(tiny.settings(data, out, **changes)), resume=resume, command=["clipkit", "train"])


def model(seed):
    torch.manual_seed(seed)
    return create_model("vit-tiny-32px", **tiny.MODEL)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.safetensors"
    save_file(export_state_dict(model(11), "open_clip_custom_text"), path)
    return path


@pytest.fixture(scope="module")
def image_run(data, tmp_path_factory):
    """A run of larger pictures, whose positions have to be resized."""
    out = tmp_path_factory.mktemp("image") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
        run(data, out, model__overrides={**tiny.MODEL, "vision.image_size": 48}, train__steps=2, train__seed=9)
    return out


def towers(image_run, text_file, **more):
    return {"image": str(image_run), "text": str(text_file), **more}


def first_weights(run_dir):
    """Of a run of one step at rate zero."""
    tensors = tiny.checkpoint_tensors(run_dir, 1)
    return {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}


ONE_STEP = {"train__steps": 1, "optim__lr": 0.0}


def test_a_run_starts_from_a_runs_image_tower_and_a_files_text_tower(data, image_run, text_file, tmp_path, caplog):
    run(data, tmp_path / "fresh", **ONE_STEP)
    run(data, tmp_path / "run", model__init=towers(image_run, text_file), **ONE_STEP)
    found, fresh = first_weights(tmp_path / "run"), first_weights(tmp_path / "fresh")
    image, text = load_run(image_run)[0].state_dict(), model(11).state_dict()
    resized = "visual.positional_embedding"
    for name, value in found.items():
        source = fresh if name in HEADS else image if name.startswith("visual.") else text
        assert name == resized or torch.equal(value, source[name]), name
    assert torch.equal(found[resized][0], image[resized][0])
    report = json.loads((tmp_path / "run" / "init_report.json").read_text())
    assert list(report["image"]["resized"]) == [resized]
    assert {*report["image"]["skipped"], *report["text"]["skipped"]} == HEADS
    assert (report["image"]["source"], report["text"]["source"]) == (str(image_run), str(text_file))
    assert f"resized  {resized}" in caplog.text
    assert not (tmp_path / "fresh" / "init_report.json").exists()


def test_skip_and_resize_are_the_configurations(data, image_run, text_file, tmp_path):
    everything = {"text": str(text_file), "skip": []}
    run(data, tmp_path / "run", model__init=everything, **ONE_STEP)
    assert torch.equal(first_weights(tmp_path / "run")["text_projection"], model(11).text_projection)
    with pytest.raises(ValueError, match=r"visual\.positional_embedding: \(37, 16\) -> \(17, 16\)"):
        run(data, tmp_path / "other", model__init=towers(image_run, text_file, resize=False))
    assert not (tmp_path / "other").exists()


def test_what_export_writes_is_a_tower_too(data, image_run, tmp_path):
    assert cli.main(["export", str(image_run), "--out", str(tmp_path / "exported")]) == 0
    run(data, tmp_path / "run", model__init={"image": str(tmp_path / "exported")}, **ONE_STEP)
    run(data, tmp_path / "again", model__init={"image": str(image_run)}, **ONE_STEP)
    found, wanted = first_weights(tmp_path / "run"), first_weights(tmp_path / "again")
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


@pytest.mark.parametrize(("inside", "extra"), [("model.clip.", "model.decoder.weight"), ("model.", "optimizer.a.step")])
def test_of_a_run_only_the_clip_model_is_read(tmp_path, inside, extra):
    """A recipe may train a larger module, and every run has an optimizer."""
    wanted = model(3).state_dict()
    tensors = {inside + name: value for name, value in wanted.items()}
    CheckpointStore(tmp_path / "checkpoints", Runtime(), keep_last=1).save(1, {**tensors, extra: torch.ones(2)}, {})
    found = run_tensors(tmp_path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


class Killed(BaseException):
    """As sudden as SIGKILL: nothing is saved."""


def test_a_killed_run_goes_on_bitwise_without_its_first_towers(data, image_run, text_file, tmp_path, monkeypatch):
    image, text = tmp_path / "image", tmp_path / "text.safetensors"
    shutil.copytree(image_run, image)
    shutil.copy(text_file, text)
    settings = {"model__init": {"image": str(image), "text": str(text)}, "train__save_every": 2}
    run(data, tmp_path / "whole", **settings)
    show = Session.show

    def and_die(self, **facts):
        show(self, **facts)
        if self.position.step == 5:
            raise Killed

    monkeypatch.setattr(Session, "show", and_die)
    with pytest.raises(Killed):
        run(data, tmp_path / "cut", **settings)
    monkeypatch.setattr(Session, "show", show)
    shutil.rmtree(image)
    text.unlink()
    before = (tmp_path / "cut" / "init_report.json").read_bytes()
    assert run(data, tmp_path / "cut", **settings) is Ending.FINISHED
    assert tiny.losses(tmp_path / "cut") == tiny.losses(tmp_path / "whole")
    ours, theirs = tiny.checkpoint_tensors(tmp_path / "cut", 8), tiny.checkpoint_tensors(tmp_path / "whole", 8)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert (tmp_path / "cut" / "init_report.json").read_bytes() == before
    with pytest.raises(FileNotFoundError, match=r"model\.init\.image"):
        run(data, tmp_path / "cut", resume="never", **settings)
    assert len(tiny.losses(tmp_path / "cut")) == 8, "a refusal leaves the earlier run where it is"


@pytest.mark.parametrize(
    ("init", "error", "words"),
    [
        ({"image": "gone.pt"}, FileNotFoundError, "model.init.image: gone.pt does not exist"),
        ({"text": "gone/run"}, FileNotFoundError, "model.init.text: gone/run does not exist"),
        ({"image": "empty"}, FileNotFoundError, "model.init.image: run: empty has no complete checkpoint"),
        ({"image": "broken.pt"}, ValueError, "checkpoint: got broken.pt"),
        ({"image": "conv.pt"}, ValueError, "towers: got image from conv.pt (clipkit) with"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(data, tmp_path, monkeypatch, init, error, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint at all")
    torch.save(create_model("conv-tiny-32px").state_dict(), "conv.pt")
    with pytest.raises(error) as caught:
        run(data, tmp_path / "run", model__init=init)
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_missing_towers_are_found_before_the_data_are_read(data, tmp_path, monkeypatch):
    monkeypatch.setattr("clipkit.train.build._open", lambda config: pytest.fail("the data were opened"))
    with pytest.raises(FileNotFoundError, match=r"model\.init\.text"):
        run(data, tmp_path / "run", model__init={"text": str(tmp_path / "gone.pt")})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__pretrained": "a.pt", "model__init": {"text": "b.pt"}}, "model.pretrained: got a whole model, beside"),
        ({"model__init": {"skip": ["visual.proj"]}}, "model.init.skip: got visual.proj"),
        ({"model__init": {"vision": "a.pt"}}, "model.init.vision: got an unknown key"),
    ],
)
def test_contradictions_are_named(data, tmp_path, changes, words):
    with pytest.raises(ValueError) as caught:
        parse_config(tiny.settings(data, tmp_path / "run", **changes))
    assert words in str(caught.value)


def test_towers_can_be_set_on_the_command_line(data, tmp_path):
    path = tiny.write_config(tmp_path / "config.yaml", tiny.settings(data, tmp_path / "run"))
    config = load_config(path, ["model.init.image=a.pt", "model.init.skip=[visual.proj, visual.ln_post]"])
    assert config.model.init == InitConfig(image="a.pt", skip=("visual.proj", "visual.ln_post"))
    assert load_config(path).model.init == InitConfig()


# Ranks


def check_ranks_agree(rank, folder):
    with runtime({}) as here:
        # each rank reads another file and starts elsewhere: what counts is rank 0's
        ours = model(100 + rank)
        initialise(ours, InitConfig(text=f"{folder}/text-{rank}.pt"), here)
        wanted = model(100)
        initialise(wanted, InitConfig(text=f"{folder}/text-0.pt"), Runtime())
        assert all(torch.equal(v, wanted.state_dict()[n]) for n, v in ours.state_dict().items())
        before = {name: value.clone() for name, value in ours.state_dict().items()}
        for source, error in (("gone.pt", FileNotFoundError), ("broken.pt", ValueError)):
            with pytest.raises(error if rank == 0 else ValueError, match=source):
                initialise(ours, InitConfig(image=f"{folder}/{source}" if rank == 0 else "anything"), here)
        assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
        dist.barrier()


def test_every_rank_has_rank_0s_towers_or_its_error(tmp_path):
    for rank in (0, 1):
        torch.save(model(20 + rank).state_dict(), tmp_path / f"text-{rank}.pt")
    (tmp_path / "broken.pt").write_bytes(b"")
    run_on_ranks(2, check_ranks_agree, str(tmp_path))


@pytest.mark.slow
def test_two_ranks_start_where_one_does_however_the_weights_are_spread(data, image_run, text_file, tmp_path):
    init = towers(image_run, text_file)
    run(data, tmp_path / "one", model__init=init, **ONE_STEP)
    jobs = [
        {"tree": tiny.settings(data, tmp_path / mode, model__init=init, train__parallel=mode, **ONE_STEP)}
        for mode in ("ddp", "fsdp2")
    ]
    tiny.run_on_ranks(2, jobs, tmp_path)
    wanted = first_weights(tmp_path / "one")
    for mode in ("ddp", "fsdp2"):
        found = first_weights(tmp_path / mode)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())
        assert (tmp_path / mode / "init_report.json").exists()
