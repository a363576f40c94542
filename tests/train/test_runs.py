# SPDX-License-Identifier: Apache-2.0
"""Whole runs in this process: what they write, what they refuse, how they go on."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch

from clipkit.machine import processor
from clipkit.train import Ending, NonFiniteLossError, load_run, parse_config, train
from clipkit.train.loop import run_loop
from clipkit.train.precision import emulated_on_cpu
from clipkit.train.session import Session
from tests.train import tiny


@pytest.fixture(autouse=True)
def _quick_end(monkeypatch):
    """The report is tested elsewhere."""
    monkeypatch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")


def run(data, out, *, resume="auto", **changes):
    tree = tiny.settings(data, out)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    return train(parse_config(tree), resume=resume, command=["clipkit", "train"])


def lines(out, kind):
    found = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """An uninterrupted run of eight steps with a checkpoint every three."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
        assert run(data, out, train__save_every=3) is Ending.FINISHED
    return out


def test_a_run_writes_what_it_promises(finished):
    assert [line["step"] for line in lines(finished, "train")] == list(range(1, 9))
    wanted = {
        *("kind", "step", "epoch", "loss", "losses", "lr", "logit_scale", "grad_norm", "samples_per_second"),
        *("data_wait", "seconds", "skipped_samples", "skipped_updates"),
    }
    line = lines(finished, "train")[-1]
    assert set(line) == wanted
    assert line["losses"] == {"contrastive": line["loss"]}
    assert 0 <= line["data_wait"] <= 1
    assert [line["epoch"] for line in lines(finished, "train")] == [0] * 4 + [1] * 4, "48 samples, 12 per step"
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]
    facts = json.loads((finished / "environment.json").read_text())
    assert facts["command"] == "clipkit train"
    assert facts["torch"] == torch.__version__


def test_loss_goes_down(data, tmp_path):
    run(data, tmp_path / "run", train__steps=60, train__log_every=10, optim__lr=1e-2)
    losses = tiny.losses(tmp_path / "run")
    assert losses[10] > losses[60]
    assert losses[60] < 0.8 * math.log(12)


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_resume_is_bitwise_from_any_step(data, finished, tmp_path, monkeypatch, cut):
    stop_after(monkeypatch, cut)
    assert run(data, tmp_path / "run", train__save_every=0) is Ending.PREEMPTED
    monkeypatch.undo()
    monkeypatch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
    assert len(tiny.losses(tmp_path / "run")) == cut
    assert run(data, tmp_path / "run") is Ending.FINISHED
    assert tiny.losses(tmp_path / "run") == tiny.losses(finished)
    ours, theirs = load_run(tmp_path / "run")[0].state_dict(), load_run(finished)[0].state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_activation_checkpointing_changes_nothing(data, finished, tmp_path):
    run(data, tmp_path / "run", model__grad_checkpointing=True)
    found, wanted = tiny.losses(tmp_path / "run"), tiny.losses(finished)
    assert all(loss == pytest.approx(wanted[step], rel=1e-5) for step, loss in found.items())


@pytest.mark.parametrize("changes", [{"train__accumulation": 3}, {"data__workers": 2}, {"train__async_save": True}])
def test_resume_is_bitwise_with_accumulation_workers_and_async_saving(data, tmp_path, monkeypatch, changes):
    overrides = {**tiny.MODEL, "vision.patch_dropout": 0.5}
    run(data, tmp_path / "whole", model__overrides=overrides, train__save_every=2, **changes)
    stop_after(monkeypatch, 5)
    run(data, tmp_path / "cut", model__overrides=overrides, train__save_every=2, **changes)
    monkeypatch.undo()
    monkeypatch.setattr("clipkit.report.write_report", lambda run, *_: run / "report.html")
    run(data, tmp_path / "cut", model__overrides=overrides, train__save_every=2, **changes)
    assert tiny.losses(tmp_path / "cut") == tiny.losses(tmp_path / "whole")


def stop_after(monkeypatch, steps, number=signal.SIGTERM):
    """Send this process a signal while step `steps` is being shown."""
    show = Session.show

    def and_signal(self, **facts):
        show(self, **facts)
        if self.position.step == steps:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Session, "show", and_signal)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_each_stop_signal_saves_and_says_so(data, tmp_path, monkeypatch, name):
    before = signal.getsignal(signal.SIGTERM)
    stop_after(monkeypatch, 2, getattr(signal, name))
    ending = run(data, tmp_path / "run")
    assert (ending, ending.value) == (Ending.PREEMPTED, 75)
    event = lines(tmp_path / "run", "event")[-1]
    assert (event["event"], event["signal"], event["step"]) == ("preempted", name, 2)
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "complete.json").exists()
    assert signal.getsignal(signal.SIGTERM) is before, "the caller's handlers come back"


def test_stop_during_evaluation_saves_and_the_evaluation_is_done_after_resuming(data, tmp_path, monkeypatch):
    sets = [{"name": "first", "data": str(data)}, {"name": "second", "data": str(data)}]
    import clipkit.evaluate as evaluate

    real = evaluate.evaluate_run

    def signalled(model, tokenizer, config, *, runtime, should_stop):
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        return real(model, tokenizer, config, runtime=runtime, should_stop=should_stop)

    monkeypatch.setattr(evaluate, "evaluate_run", signalled)
    settings = {"eval__retrieval": sets, "eval__every_steps": 4}
    assert run(data, tmp_path / "run", **settings) is Ending.PREEMPTED
    assert lines(tmp_path / "run", "eval") == []
    monkeypatch.setattr(evaluate, "evaluate_run", real)
    assert run(data, tmp_path / "run", **settings) is Ending.FINISHED
    assert [line["step"] for line in lines(tmp_path / "run", "eval")] == [4, 8]
    final = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert final["step"] == 8
    assert "second/image_to_text/R@1" in final


def test_a_finished_run_is_not_trained_or_evaluated_again(data, tmp_path):
    settings = {"eval__retrieval": [{"name": "own", "data": str(data)}]}
    run(data, tmp_path / "run", **settings)
    first = (lines(tmp_path / "run", "train"), lines(tmp_path / "run", "eval"))
    assert run(data, tmp_path / "run", **settings) is Ending.FINISHED
    assert (lines(tmp_path / "run", "train"), lines(tmp_path / "run", "eval")) == first


def test_never_starts_over_and_keeps_the_earlier_run(data, tmp_path):
    run(data, tmp_path / "run")
    run(data, tmp_path / "run", resume="never", train__steps=2)
    assert len(tiny.losses(tmp_path / "run")) == 2
    assert len(tiny.losses(tmp_path / "run.old-1")) == 8


def test_resume_from_a_path_goes_on_elsewhere(data, finished, tmp_path):
    run(data, tmp_path / "run", resume=str(finished / "checkpoints" / "step-00000006"))
    wanted = tiny.losses(finished)
    assert tiny.losses(tmp_path / "run") == {7: wanted[7], 8: wanted[8]}
    with pytest.raises(ValueError, match="--resume"):
        run(data, tmp_path / "other", resume=str(tmp_path / "nowhere"))


def test_resume_from_an_earlier_step_leaves_no_later_history(data, tmp_path):
    out = tmp_path / "run"
    run(data, out, train__save_every=3, train__keep_last=5)
    run(data, out, train__steps=5, resume=str(out / "checkpoints" / "step-00000003"))
    assert len(tiny.losses(out)) == 5
    assert (out / "checkpoints" / "step-00000008.superseded-1").is_dir()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"train__global_batch": 16}, "train.global_batch: got 16, while the checkpoint was made with 12"),
        ({"train__seed": 6}, "train.seed"),
        ({"model__overrides": {**tiny.MODEL, "vision.width": 24}}, "model.overrides.vision.width"),
        ({"loss__name": "siglip"}, "loss.name"),
        ({"optim__name": "muon"}, "optim.name"),
    ],
)
def test_resume_refuses_another_run(data, finished, tmp_path, changes, words):
    with pytest.raises(ValueError) as caught:
        run(data, tmp_path / "run", resume=str(finished), **changes)
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists(), "a refusal writes nothing"


def test_resume_refuses_another_data_set(finished, tmp_path):
    other = tiny.build_set(tmp_path / "other", count=60)
    with pytest.raises(ValueError, match="48 samples, fingerprint"):
        run(other, tmp_path / "run", resume=str(finished), data__train=str(other))


def test_resume_says_what_else_changed(data, finished, tmp_path, caplog):
    run(data, tmp_path / "run", resume=str(finished), train__steps=9)
    assert "train.steps: 8 -> 9" in caplog.text


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_bf16_is_emulated_where_the_processor_has_no_avx512():
    name, flags = processor()
    if "avx2" not in flags:
        pytest.skip(f"{name} is no x86 with known flags")
    assert emulated_on_cpu(torch.bfloat16) is not bool({"avx512bw", "avx_ne_convert"} & flags)


@pytest.mark.parametrize("emulated", [False, True])
def test_16_bit_that_this_processor_emulates_is_warned_of(data, tmp_path, caplog, monkeypatch, emulated):
    monkeypatch.setattr("clipkit.train.build.emulated_on_cpu", lambda dtype: emulated)
    run(data, tmp_path / "run", train__precision="bf16", train__steps=1)
    assert ("set train.precision=fp32" in caplog.text) is emulated


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bit_precision_trains(data, tmp_path, precision):
    run(data, tmp_path / "run", train__precision=precision, train__steps=30, optim__lr=1e-2)
    losses = [loss for loss in tiny.losses(tmp_path / "run").values() if loss is not None]
    assert losses[-1] < losses[0]
    skipped = lines(tmp_path / "run", "train")[-1]["skipped_updates"]
    assert skipped < 20
    assert (precision == "fp16") or skipped == 0


def test_divergence_stops_at_its_step_and_saves_nothing_after(data, tmp_path, monkeypatch):
    after_step = "clipkit.recipes.contrastive.Recipe.after_step"

    def poison(self, module):
        if poison.calls == 4:
            module.visual.proj.data.fill_(math.nan)
        poison.calls += 1

    poison.calls = 0
    monkeypatch.setattr(after_step, poison)
    with pytest.raises(NonFiniteLossError, match="step 6"):
        run(data, tmp_path / "run", train__save_every=2)
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved[-1] == "step-00000004"


def test_scale_stays_in_its_range(data, tmp_path):
    overrides = {**tiny.MODEL, "init_logit_scale": math.log(200.0)}
    run(data, tmp_path / "run", model__overrides=overrides, train__steps=2)
    assert lines(tmp_path / "run", "train")[-1]["logit_scale"] <= 100.0 + 1e-3


def test_siglip_trains(data, tmp_path):
    run(data, tmp_path / "run", loss__name="siglip", train__steps=40, optim__lr=1e-2)
    losses = tiny.losses(tmp_path / "run")
    assert losses[40] < losses[1]
    assert load_run(tmp_path / "run")[0].logit_bias is not None


def test_epochs_count_whole_passes(data, tmp_path):
    run(data, tmp_path / "run", train__steps=None, train__epochs=2)
    assert len(tiny.losses(tmp_path / "run")) == 2 * (48 // 12)


def test_load_run_gives_the_model_of_any_kept_step(finished):
    model, config, tokenizer = load_run(finished)
    assert not model.training
    assert config.train.global_batch == 12
    assert tokenizer.vocab_size == 600
    earlier, _, _ = load_run(finished, step=6)
    assert not torch.equal(earlier.visual.proj, model.visual.proj)
    with pytest.raises(ValueError, match="8 or 6"):
        load_run(finished, step=7)
    with pytest.raises(FileNotFoundError, match="clipkit train"):
        load_run(finished / "nothing")


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"train__global_batch": 49}, ValueError, "48 samples"),
        ({"train__parallel": "fsdp2"}, ValueError, "torchrun"),
        ({"train__parallel": "hsdp", "train__shards": 1}, ValueError, "hsdp in a single process"),
        ({"model__name": "vit-tiny-33px"}, ValueError, "vit-tiny-32px"),
        ({"data__train": "data/emoji/train"}, FileNotFoundError, "clipkit data emoji --out data/emoji"),
        ({"eval__retrieval": [{"name": "a", "data": "gone"}]}, FileNotFoundError, "eval.retrieval[0].data: gone"),
        ({"train__trackers": ["wandb"]}, ValueError, "pip install wandb"),
        ({"recipe__name": "fastclippy"}, ValueError, "contrastive"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(data, tmp_path, changes, error, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clipkit.train.metrics._is_installed", lambda package: False)
    with pytest.raises(error) as caught:
        run(data, tmp_path / "run", **changes)
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_state_that_is_split_over_one_process_is_whole(data, finished, tmp_path):
    assert run(data, tmp_path / "run", train__parallel="zero1") is Ending.FINISHED
    assert tiny.losses(tmp_path / "run") == tiny.losses(finished)


def test_a_loss_that_stays_at_chance_is_pointed_out_once(data, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("clipkit.train.watch._CHANCE_STEP", 20)  # 200 in earnest
    overrides = {**tiny.MODEL, "init_logit_scale": 0.0}
    run(data, tmp_path / "run", optim__lr=0.0, train__steps=21, model__overrides=overrides)
    warnings = [record for record in caplog.records if "that of guessing" in record.getMessage()]
    assert len(warnings) == 1
    assert "step 20:" in warnings[0].getMessage()


def test_the_loop_is_short_and_knows_no_recipe():
    source = __import__("inspect").getsource(__import__("sys").modules[run_loop.__module__])
    assert source.count("\n") <= 250
    assert "clip" not in source.replace("clipkit", "")
