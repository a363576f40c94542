# SPDX-License-Identifier: Apache-2.0
"""Compiled blocks: everything is compiled when a run first meets it, and nothing again, whatever the captions are."""

import pytest
import torch
import torch._dynamo.callback
from torch._dynamo.utils import counters

from clipkit.train.compile import compile_blocks
from tests.encoders.naive import padded_tokens, tiny_model

STEPS = 6
ROWS = 8


class _Run:
    """A model whose blocks are compiled, and what a run does with it; random lengths and pictures every time."""

    def __init__(self, *, recompute=False, low_dtype=None):
        self.generator = torch.Generator().manual_seed(0)
        overrides = {"vision.patch_dropout": 0.5, "vision.layers": 3, "text.layers": 3}
        self.model = tiny_model(torch.float32, **overrides).train()
        self.model.set_grad_checkpointing(recompute)
        self.low_dtype = low_dtype
        compile_blocks(self.model.blocks(), backend="aot_eager" if recompute else "eager")

    def encode(self, rows, *, gradients=True):
        lengths = torch.randint(1, 25, (rows,), generator=self.generator).tolist()
        tokens = padded_tokens(lengths, 24, seed=sum(lengths))
        pixels = torch.randn(rows, 3, 16, 16, generator=self.generator)
        autocast = torch.autocast("cpu", dtype=self.low_dtype, enabled=self.low_dtype is not None)
        with autocast, torch.set_grad_enabled(gradients):
            return self.model(pixels, tokens)

    def step(self, rows=ROWS):
        outputs = self.encode(rows)
        (outputs["image_features"].float() @ outputs["text_features"].float().T).logsumexp(1).sum().backward()

    def cached_step(self):
        """GradCache over unequal micro-batches: all of them without gradients, then with."""
        for gradients in (False, True):
            for rows in (ROWS, ROWS + 1):
                self.encode(rows, gradients=gradients)

    def evaluation(self):
        low, self.low_dtype = self.low_dtype, None
        self.model.eval()
        for rows in (20, 20, 7):
            self.encode(rows, gradients=False)
        self.model.train()
        self.low_dtype = low


@pytest.fixture
def compilations():
    """Grows by one with each graph that dynamo compiles; a silent return to eager is an error."""
    torch._dynamo.reset()
    started = []
    callback = torch._dynamo.callback.on_compile_start(started.append)
    before = torch._dynamo.config.recompile_limit
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield started
    torch._dynamo.config.recompile_limit = before
    torch._dynamo.callback.callback_handler.remove_start_callback(callback)
    torch._dynamo.reset()


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("low_dtype", [None, torch.bfloat16], ids=["fp32", "autocast"])
def test_steps_compile_at_the_start_only(compilations, recompute, low_dtype):
    run = _Run(recompute=recompute, low_dtype=low_dtype)
    for _ in range(2):
        run.step()
    first = len(compilations)
    for _ in range(STEPS):
        run.step()
    assert 0 < first == len(compilations)
    run.step(ROWS - 3)  # a last, smaller batch: sizes of pictures become symbolic, once
    last = len(compilations)
    for rows in (ROWS, ROWS - 3, ROWS - 2, ROWS + 5):
        run.step(rows)
    assert len(compilations) == last


def test_gradcache_and_evaluation_compile_once_each_and_never_fall_back(compilations):
    run = _Run(low_dtype=torch.bfloat16)
    for _ in range(2):
        run.cached_step()
        run.evaluation()
    warm = len(compilations)
    for _ in range(3):
        run.cached_step()
        run.evaluation()
    assert 0 < warm == len(compilations)


def test_only_grouped_attention_breaks_a_block(compilations):
    counters.clear()
    _Run().step()
    assert all("grouped_attention" in reason for reason in counters["graph_break"])


def test_compiled_blocks_compute_the_same():
    plain, run = _Run().model.eval(), _Run()
    pixels, tokens = torch.randn(4, 3, 16, 16), padded_tokens([3, 9, 24, 1], 24)
    torch._dynamo.reset()
    for eager, compiled in zip(plain.blocks(), run.model.eval().blocks(), strict=True):
        eager._compiled_call_impl = None
        assert compiled._compiled_call_impl is not None
    for name, value in run.model(pixels, tokens).items():
        torch.testing.assert_close(value, plain(pixels, tokens)[name], rtol=0, atol=1e-6)
