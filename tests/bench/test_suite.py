# SPDX-License-Identifier: Apache-2.0
"""The throughput suite: what runs is right and measured, what does not is a row that says so."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import suite as suite_module
from bench.cases import DIRECTIONS, DTYPES, LOSSES, Case, tensors
from bench.floor import run_products
from bench.ours import ours
from bench.peers import Variant, all_peers, by_autograd
from bench.peers.naive import DEFINITIONS
from bench.plan import default_plan, quick_plan
from bench.suite import PEAK_IS_KNOWN, Suite, _repeats
from bench.table import line, not_measured
from bench.trial import SMALL, Trial, Trials, disagreement, explain, forked

SMALL_CASE = Case("clip", 96, 16, "float32", "fwd+bwd")
ON_CPU = [
    peer for peer in all_peers().values() if not peer.needs_cuda and not peer.compiles and peer.distribution is None
]


def suite(cases, variants, **options):
    return Suite(cases, variants, "cpu", options.pop("budget", 60.0), **options)


class TestVariants:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("loss", LOSSES)
    def test_every_loss_of_ours_is_the_definition(self, loss, dtype):
        for direction in DIRECTIONS:
            step = ours("torch").load(loss)
            assert disagreement(step, Case(loss, 8, 16, dtype, direction), "cpu") is None

    @pytest.mark.parametrize("peer", ON_CPU, ids=lambda peer: peer.name)
    def test_every_peer_of_plain_torch_computes_the_loss(self, peer):
        for loss in peer.losses:
            for direction in DIRECTIONS:
                assert disagreement(peer.load(loss), Case(loss, 8, 16, "float32", direction), "cpu") is None

    def test_open_clip_computes_the_losses(self, open_clip):
        peer = all_peers()["open_clip"]
        for loss in peer.losses:
            assert disagreement(peer.load(loss), Case(loss, 8, 16, "float32", "fwd+bwd"), "cpu") is None

    def test_another_loss_or_gradient_is_noticed(self):
        case = Case("clip", 8, 16, "float32", "fwd+bwd")
        clip = DEFINITIONS["clip"]
        assert "another loss" in disagreement(by_autograd(lambda t: clip(t) + 1), case, "cpu")
        backwards = by_autograd(lambda t: 2 * clip(t).detach() - clip(t))
        assert "another gradient of image" in disagreement(backwards, case, "cpu")
        silent = by_autograd(lambda t: clip(t) * float("nan"))
        assert "another loss" in disagreement(silent, case, "cpu")

    def test_the_floor_counts_every_product(self):
        """Four units of 2·N²·d for CLIP's gradients, three for SigLIP's, one for a forward."""
        for loss, direction, units in (("clip", "fwd+bwd", 4), ("siglip", "fwd+bwd", 3), ("clip", "fwd", 1)):
            case = Case(loss, 64, 8, "float32", direction)
            assert case.products.units == units
            with FlopCounterMode(display=False) as counter:
                run_products(case, tensors(case, "cpu"))
            assert counter.get_total_flops() == units * 2 * 64 * 64 * 8


class TestRows:
    def test_a_case_has_a_row_for_each_variant_and_the_floor(self):
        saved = []
        run = suite([SMALL_CASE], [ours(None), all_peers()["torch"]], save=lambda: saved.append(1))
        rows = {row["variant"]: row for row in run.run()}
        assert list(rows) == ["clipkit", "torch", "floor"]
        for row in rows.values():
            assert row["reason"] is None
            assert row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
            assert row["floor_units"] == 4
            assert row["floor_share"] > 0
            assert "clip" in line(row)
        assert rows["floor"]["floor_share"] == 1.0
        assert (rows["torch"]["extra_mib"] is not None) == PEAK_IS_KNOWN
        assert saved == [1]

    def test_what_cannot_run_is_a_row_that_says_so(self):
        absent = Variant("absent", ("clip",), DEFINITIONS.get, distribution="no-such-distribution-of-clipkit")
        run = suite([SMALL_CASE], [all_peers()["inf-cl"], absent])
        reasons = {row["variant"]: row["reason"] for row in run.run()}
        assert reasons["inf-cl"] == "needs CUDA"
        assert reasons["absent"] == "not installed: pip install no-such-distribution-of-clipkit"
        assert reasons["floor"] is None
        lines = not_measured(run.rows)
        assert any(words.startswith("inf-cl: needs CUDA (clip 96x16") for words in lines)

    def test_a_failing_variant_is_a_row_and_the_others_go_on(self, monkeypatch):
        def fails(loss):
            def step(tensors, direction):
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 99999999999 bytes")

            return step

        monkeypatch.setattr(suite_module, "PEAK_IS_KNOWN", False)  # in this process, as on a card
        rows = suite([SMALL_CASE], [Variant("broken", ("clip",), fails), all_peers()["torch"]]).run()
        found = {row["variant"]: row for row in rows}
        assert found["broken"]["reason"] == "out of memory"
        assert found["broken"]["seconds"] is None
        assert found["torch"]["seconds"] is not None
        assert found["torch"]["extra_mib"] is None

    def test_a_broken_card_ends_the_run_and_keeps_its_rows(self, monkeypatch):
        def breaks(loss):
            def step(tensors, direction):
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

            return step

        def still_broken():
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(suite_module, "PEAK_IS_KNOWN", False)
        monkeypatch.setattr(torch.cuda, "synchronize", still_broken)
        run = suite([SMALL_CASE, SMALL_CASE], [Variant("breaks", ("clip",), breaks), all_peers()["torch"]])
        (row,) = run.run()
        assert (row["variant"], row["reason"]) == ("breaks", "the run broke off here")
        assert "illegal memory access" in run.stopped

        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)  # a launch was refused, the card lives
        run = suite([SMALL_CASE], [Variant("breaks", ("clip",), breaks), all_peers()["torch"]])
        found = {row["variant"]: row for row in run.run()}
        assert "illegal memory access" in found["breaks"]["reason"]
        assert found["torch"]["seconds"] is not None
        assert run.stopped is None

    def test_no_case_is_begun_after_the_budget(self):
        rows = suite([SMALL_CASE], [all_peers()["torch"]], budget=1e-9).run()
        assert {row["reason"] for row in rows} == {"the budget of 0 s was spent"}

    def test_a_step_that_would_take_too_long_is_left_out_by_what_smaller_ones_took(self):
        run = suite([], [])
        run.run()
        run._steps[("clip", "float32", "fwd+bwd", "torch")] = 1.0 / (1024**2 * 16)
        large = Case("clip", 8192, 16, "float32", "fwd+bwd")
        assert run._obstacle(large, all_peers()["torch"]) == "left out: about 64 s a step"
        small = Case("clip", 1024, 16, "float32", "fwd+bwd")
        assert run._obstacle(small, all_peers()["torch"]) is None

    def test_rounds_follow_the_budget(self):
        assert _repeats(0.001, 420) == 15
        assert _repeats(1.0, 420) == 7
        assert _repeats(20.0, 420) == 3
        assert _repeats(30.0, 420) == 2
        assert _repeats(500.0, 420) == 1

    @pytest.mark.parametrize("field, value", [("loss", "clap"), ("dtype", "float8"), ("direction", "bwd"), ("rows", 0)])
    def test_a_wrong_case_is_refused(self, field, value):
        good = {"loss": "clip", "rows": 8, "width": 8, "dtype": "float32", "direction": "fwd"}
        with pytest.raises(ValueError, match=str(value)):
            Case(**{**good, field: value})


@pytest.mark.skipif(not PEAK_IS_KNOWN, reason="a process's peak is known on Linux only")
class TestTrials:
    def test_memory_of_the_matrix_is_seen(self):
        """At N = 2,048 plain torch stores matrices of 16 MiB; at a million one of 4 TiB does not kill anybody."""
        with Trials() as trials:
            found = trials.run(Case("clip", 2048, 16, "float32", "fwd+bwd"), "torch", "cpu", 60.0)
            assert found.reason is None
            assert found.extra_mib > 2 * 16
            huge = trials.run(Case("clip", 10**6, 16, "float32", "fwd"), "torch", "cpu", 60.0)
            assert huge == Trial(reason="out of memory")

    def test_a_process_that_dies_or_hangs_is_a_reason(self):
        killed = forked(lambda: os.kill(os.getpid(), signal.SIGKILL), patience=30.0)
        assert killed.reason == f"killed by signal {int(signal.SIGKILL)}"
        assert forked(lambda: signal.pause(), patience=0.2).reason == "no step within 0 s"

    def test_reasons_are_one_line(self):
        assert explain(RuntimeError("first\nsecond")) == "RuntimeError: first"
        assert explain(MemoryError()) == "out of memory"
        assert explain(ImportError()) == "ImportError: no message"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_default_plans_hold_what_the_targets_ask_for(device):
    from bench.targets import TARGETS

    plan = default_plan(device)
    cases = {(case.rows, case.width, case.dtype) for case in plan.cases if case.loss == "clip"}
    assert {target.case for target in TARGETS if target.device == device} - {None} <= cases
    assert plan.compiled <= set(plan.cases)
    assert quick_plan(device).budget <= 60
    assert min(case.rows for case in plan.cases) > SMALL
