# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a whole step: both sides train the same model, a difference is noticed, the parts make the step."""

import json
import math
import re

import pytest
import torch

from bench.end_to_end import __main__ as command
from bench.end_to_end import losses, memory, sides, text, timing, work
from bench.end_to_end.batches import lengths, make_batch
from bench.end_to_end.sides import OURS, PEER, PEER_FUSED, Workbench
from bench.peers import import_peer
from clipkit.encoders import zoo
from clipkit.encoders.config import CLIPConfig, TextConfig, VisionConfig

NANO = CLIPConfig(
    32,
    VisionConfig(image_size=16, patch_size=8, width=64, layers=2, head_width=32),
    TextConfig(vocab_size=512, width=64, heads=2, layers=2),
)


def _open_clip_imports():
    try:
        import_peer("open_clip")
    except Exception:
        return False
    return True


needs_peer = pytest.mark.skipif(not _open_clip_imports(), reason="open_clip does not import here")


@pytest.fixture
def nano(monkeypatch):
    """A model of both libraries that takes milliseconds."""
    monkeypatch.setitem(zoo.MODELS, "nano", NANO)
    return Workbench("nano", "cpu")


def test_captions_have_the_lengths_that_are_written_down():
    generator = torch.Generator().manual_seed(0)
    many = lengths(10_000, 77, generator).double()
    assert many.mean() == pytest.approx(14.95, abs=0.05)
    assert many.median() == 13
    assert (many > 44).double().mean() == pytest.approx(0.01, abs=0.002)
    for count in (8, 32, 128):
        assert lengths(count, 77, generator).double().mean() == pytest.approx(14.9, abs=0.4)


def test_batches_are_captions_with_a_start_and_an_end():
    batch = make_batch(64, image_size=16, context=20, vocab_size=512, seed=3, device="cpu", dtype=torch.float64)
    again = make_batch(64, image_size=16, context=20, vocab_size=512, seed=3, device="cpu", dtype=torch.float32)
    assert torch.equal(batch.tokens, again.tokens)
    assert torch.equal(batch.pixels, again.pixels.double())
    assert (batch.tokens[:, 0] == 510).all()
    ends = batch.tokens.argmax(1)
    assert (ends == 19).any()  # truncated
    for row, end in zip(batch.tokens, ends, strict=True):
        assert row[end] == 511
        assert (row[1:end] > 0).all()
        assert (row[1:end] < 510).all()
        assert (row[end + 1 :] == 0).all()


@needs_peer
class TestLosses:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_both_sides_train_the_same_model(self, nano, precision):
        entry = losses.compare(nano, precision, steps=50, rows=8)
        assert entry["equal_to_rounding"]
        assert entry["max_difference"] < {"fp32": 1e-4, "bf16": 0.1}[precision]
        first, last = entry["losses"][OURS][0], entry["losses"][OURS][-1]
        assert last < first - 0.01  # something was learnt, so the updates were compared too
        assert all(len(values) == 50 for values in entry["losses"].values())

    @pytest.mark.parametrize("mistake", ["rate", "decay", "weight", "captions", "epsilon"])
    def test_a_side_that_does_something_else_is_noticed(self, nano, monkeypatch, mistake):
        whole = Workbench.side

        def perturbed(self, name, weights, precision):
            side = whole(self, name, weights, precision)
            if name == OURS:
                _spoil(side, mistake)
            return side

        monkeypatch.setattr(Workbench, "side", perturbed)
        entry = losses.compare(nano, "fp32", steps=50, rows=8)
        assert not entry["equal_to_rounding"], entry
        assert losses.sentence(entry).endswith("DIFFERENT")

    def test_sides_that_decay_different_parameters_are_not_compared(self, nano, monkeypatch):
        monkeypatch.setattr(sides.Ours, "decayed", lambda self: 1)
        with pytest.raises(AssertionError, match="decay"):
            losses.compare(nano, "fp32", steps=1, rows=4)

    def test_nothing_is_timed_where_losses_differ(self, nano, monkeypatch, tmp_path):
        monkeypatch.setattr(losses, "LENIENCE", -1.0)
        monkeypatch.setitem(losses.ULPS, "fp32", -1.0)
        words = ["--models", "nano", "--precision", "fp32", "--steps", "2", "--out", str(tmp_path), "--device", "cpu"]
        assert command.main(words) == 1
        (row,) = json.loads(next(tmp_path.rglob("*.json")).read_text(encoding="utf-8"))["rows"]
        assert row["reason"].startswith("the losses differ")


def _spoil(side, mistake):
    groups, whole = side.optimizer.param_groups, side.set_rate
    if mistake == "rate":
        side.set_rate = lambda lr: whole(1.01 * lr)
    elif mistake == "decay":
        for group in groups:
            group["weight_decay"] /= 2
    elif mistake == "epsilon":
        for group in groups:
            group["eps"] *= 10
    elif mistake == "weight":
        with torch.no_grad():
            side.model.text_projection[0, 0] += 1e-2
    else:
        pack = side._packed
        side._packed = lambda batch: pack(type(batch)(batch.pixels, batch.tokens, batch.host_tokens.roll(1, 0)))


def test_a_loss_that_is_no_number_is_not_equal():
    equal = losses.verdict([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], "fp32")
    assert equal["equal_to_rounding"]
    assert equal["max_difference"] == 0.0
    broken = losses.verdict([1.0, math.nan], [1.0, 2.0], [1.0, 2.0], "fp32")
    assert not broken["equal_to_rounding"]
    close = losses.verdict([1.0 + 5e-7, 2.0], [1.0, 2.0], [1.0 + 1e-7, 2.0], "fp32")
    assert close["equal_to_rounding"]  # within an ulp or two of the loss
    assert not losses.verdict([1.0 + 1e-4, 2.0], [1.0, 2.0], [1.0 + 1e-7, 2.0], "fp32")["equal_to_rounding"]


@needs_peer
@pytest.mark.parametrize("name", [OURS, PEER, PEER_FUSED])
def test_the_parts_make_the_step(nano, name):
    weights, batch = nano.initial_weights(), nano.batch(8, 0)
    whole, cut = (nano.side(name, weights, "fp32") for _ in range(2))
    for side in (whole, cut):
        side.set_rate(1e-3)
    whole.step(batch)
    laps = timing._laps(cut, batch)
    assert len(laps) == len(timing.PARTS)
    assert min(laps) > 0
    for (key, value), other in zip(whole.model.state_dict().items(), cut.model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=2e-5, msg=key)
    timing.part_seconds(cut, [batch])  # warm
    parts = sum(timing.part_seconds(cut, [batch]).values())
    seconds = timing.step_seconds([whole], [batch], rounds=9, budget=60.0)[name]
    assert 0.3 < parts / sorted(seconds)[len(seconds) // 2] < 3.0  # a busy machine


@needs_peer
def test_products_are_counted(nano):
    rows = 4
    batch = nano.batch(rows, 0)
    flops = work.flops_by_side(nano, [OURS, PEER, PEER_FUSED], batch)
    width, layers, dim = 64, 2, 32
    forward = 0
    for tokens in (5, 77):
        block = tokens * 24 * width**2 + 4 * tokens**2 * width
        forward += rows * (layers * block + 2 * width * dim)
    patches = rows * 4 * 2 * (3 * 8 * 8) * width
    logits = 2 * 2 * rows**2 * dim
    assert flops[PEER] == 3 * (forward + logits) + 2 * patches  # pixels have no gradient
    assert flops[PEER_FUSED] == flops[PEER]
    assert flops[OURS] < 0.4 * flops[PEER]


def test_the_device_s_peak_says_where_it_is_from(monkeypatch):
    monkeypatch.setattr(work, "PROBE_SIDES", (64, 128))
    rate, source = work.peak_flops("fp32", "cpu")
    assert rate > 0
    assert source.startswith("measured")
    for card, half in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L4", 121e12)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda card=card: card)
        assert work.peak_flops("bf16", "cuda")[0] == half


@pytest.mark.skipif(not memory.sys.platform.startswith("linux"), reason="a process's peak is known on Linux only")
def test_memory_holds_weights_gradients_and_moments():
    found = memory.peak_mib("vit-tiny-32px", OURS, "fp32", 2, "cpu")
    numbers = sum(value.numel() for value in zoo_parameters("vit-tiny-32px"))
    assert 4 * 4 * numbers / 2**20 <= found < 3 * 4 * 4 * numbers / 2**20 + 50


def zoo_parameters(name):
    import clipkit

    return clipkit.create_model(name, device="meta").parameters()


@needs_peer
def test_a_run_is_recorded_and_becomes_a_document(nano, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "peak_mib", lambda *case: 12.0)
    monkeypatch.setattr(work, "PROBE_SIDES", (64,))
    words = [
        "--models",
        "nano",
        "no-such-model",
        "--batch",
        "4",
        "--precision",
        "fp32",
        "--steps",
        "2",
        "--rounds",
        "2",
    ]
    assert command.main([*words, "--device", "cpu", "--out", str(tmp_path)]) == 0
    paths = sorted(tmp_path.rglob("end-to-end-*.json"))
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    measured, missing = results
    assert [row["side"] for row in measured["rows"]] == [OURS, PEER, PEER_FUSED]
    for row in measured["rows"]:
        assert set(row["parts"]) == set(timing.PARTS)
        assert row["samples_per_second"] == pytest.approx(4 / row["seconds"]["median"])
        assert row["utilisation"] > 0
        assert row["reason"] is None
    assert measured["rows"][0]["over_clipkit"]["median"] == 1.0
    assert "no-such-model" in missing["rows"][0]["reason"]
    monkeypatch.setattr(command, "DOCUMENT", tmp_path / "end-to-end.md")
    assert command.main(["--text", *map(str, paths)]) == 0
    written = (tmp_path / "end-to-end.md").read_text(encoding="utf-8")
    assert written == text.document(list(zip(paths, results, strict=True)))
    assert "| fp32 | 4 | open_clip, fused AdamW |" in written
    assert "no-such-model" in written


def test_the_target_is_judged_with_the_losses():
    row = {"reason": None, "model": "ViT-B-32", "side": PEER, "precision": "fp32", "batch": 32}
    fast = {**row, "over_clipkit": {"median": 1.6}}
    slow = {**row, "over_clipkit": {"median": 1.4}}

    def judged(rows, equal):
        return text.target_sentences({"comparisons": equal, "rows": rows})

    equal = [{"precision": "fp32", "equal_to_rounding": True}]
    assert "Met: 1.60, losses equal" in judged([fast], equal)[0]
    assert "Not met: 1.40" in judged([slow], equal)[0]
    assert "Not met: 1.60, losses not compared" in judged([fast], [])[0]
    assert "different" in judged([fast], [{"precision": "fp32", "equal_to_rounding": False}])[0]


def test_without_open_clip_ours_is_measured_and_the_peer_is_a_reason(nano, monkeypatch, tmp_path):
    def missing():
        raise ImportError("No module named 'open_clip'")

    monkeypatch.setattr(sides, "open_clip", missing)
    monkeypatch.setattr(memory, "peak_mib", lambda *case: None)
    monkeypatch.setattr(work, "PROBE_SIDES", (64,))
    words = ["--models", "nano", "--batch", "4", "--precision", "fp32", "--rounds", "2", "--out", str(tmp_path)]
    assert command.main([*words, "--device", "cpu"]) == 0
    rows = json.loads(next(tmp_path.rglob("*.json")).read_text(encoding="utf-8"))["rows"]
    assert [(row["side"], row["reason"] is None) for row in rows] == [(OURS, True), (PEER, False)]
    assert "open_clip" in rows[1]["reason"]


def test_the_document_is_its_result_files():
    if not text.DOCUMENT.exists():
        pytest.skip("no run has been written down")
    written = text.DOCUMENT.read_text(encoding="utf-8")
    paths = [text.ROOT / name for name in re.findall(r"\]\(\.\./(\S+\.json)\)", written)]
    assert paths
    assert text.document([(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]) == written
