# SPDX-License-Identifier: Apache-2.0
"""Which attention kernel runs and why, and that each one is called as its package wants it."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from clipkit.encoders.attention import DENSE, PACKED, Table, dense_attention, flash, packed_attention
from clipkit.encoders.attention.choice import Kernel
from clipkit.encoders.attention.flash import FLASH
from clipkit.encoders.attention.packed import over_starts, torch_varlen
from clipkit.encoders.transformer import TextLayout
from tests.encoders.naive import padded_tokens, tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MIXED = [2, 24, 7, 7, 1, 13, 24, 2, 9, 3, 23]


def test_torch_and_groups_serve_a_cpu():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert DENSE.choose(CPU, dtype, 88).name == "torch"
        assert PACKED.choose(CPU, dtype, 88).name == "groups"


@pytest.fixture
def card(monkeypatch):
    """A CUDA device of a given capability, and packages that import."""
    flash._import_obstacle.cache_clear()

    def of(capability, *installed):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(
            flash, "_import_obstacle", lambda module, name: None if module in installed else f"{name} is not installed"
        )
        # obstacles ask anew: the tables remember what they chose
        return [
            Table(table.purpose, f"UNSET_{capability}_{len(installed)}", table.kernels) for table in (DENSE, PACKED)
        ]

    from clipkit.encoders.attention import choice

    choice._choose.cache_clear()
    yield of
    choice._choose.cache_clear()


ALL = ("flash_attn_interface", "flash_attn.cute", "flash_attn.flash_attn_interface")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("capability", "installed", "dtype", "width", "dense", "packed"),
    [
        ((9, 0), ALL, BF16, 64, "flash_attn_3", "flash_attn_3"),
        ((9, 0), ALL[1:], FP16, 88, "flash_attn_4", "flash_attn_4"),
        ((10, 0), ALL, BF16, 112, "flash_attn_4", "flash_attn_4"),
        ((10, 0), ALL, BF16, 192, "flash_attn_2", "flash_attn_2"),
        ((12, 0), ALL, BF16, 64, "flash_attn_2", "flash_attn_2"),
        ((8, 0), ALL, BF16, 64, "flash_attn_2", "flash_attn_2"),
        ((8, 0), (), BF16, 64, "torch", "torch"),
        ((9, 0), ALL, FP32, 64, "torch", "groups"),
        ((9, 0), ALL, BF16, 20, "torch", "groups"),
        ((7, 5), ALL, FP16, 64, "torch", "groups"),
    ],
)
def test_the_first_that_fits_the_card_runs(card, capability, installed, dtype, width, dense, packed):
    if packed == "torch":
        pytest.importorskip("torch.nn.attention.varlen", reason="torch < 2.10 has no variable-length attention")
    pictures, captions = card(capability, *installed)
    assert pictures.choose(CUDA, dtype, width).name == dense
    assert captions.choose(CUDA, dtype, width).name == packed


@pytest.mark.parametrize("table", [DENSE, PACKED], ids=lambda table: table.purpose)
def test_a_forced_kernel_runs_or_says_why_it_cannot(table, monkeypatch):
    monkeypatch.setenv(table.variable, table.kernels[-1].name)
    assert table.choose(CUDA, torch.bfloat16, 64) is table.kernels[-1]
    monkeypatch.setenv(table.variable, "flash_attn_2")
    with pytest.raises(
        ValueError, match=rf"{table.variable}: got 'flash_attn_2' for .*float32 .* \(needs a CUDA device\)"
    ):
        table.choose(CPU, torch.float32, 64)
    monkeypatch.setenv(table.variable, "fast")
    with pytest.raises(ValueError, match=rf"{table.variable}: got 'fast'; want flash_attn_3 or .*; unset it"):
        table.choose(CPU, torch.float32, 64)


def test_the_model_heeds_what_is_forced(monkeypatch):
    model = tiny_model()
    monkeypatch.setenv(DENSE.variable, "flash_attn_4")
    monkeypatch.setenv(PACKED.variable, "flash_attn_3")
    with pytest.raises(ValueError, match=r"CLIPKIT_ATTENTION: .*needs a CUDA device"):
        model.encode_image(torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"CLIPKIT_PACKED_ATTENTION: .*needs a CUDA device"):
        model.encode_text(padded_tokens([3], 24))


def test_the_report_names_each_reason_once():
    halves = Kernel("halves", lambda device, dtype, width: None if dtype.itemsize == 2 else "needs 16 bit", lambda: max)
    rest = Kernel("rest", lambda device, dtype, width: None, lambda: max)
    found = {
        status.name: status for status in Table("tests", "UNSET", (halves, rest)).report() if status.device == "cpu"
    }
    assert found["halves"].dtypes == ("bfloat16", "float16")
    assert found["halves"].reason == "float32: needs 16 bit"
    assert found["rest"].dtypes == ("float32",)
    assert found["rest"].reason == "bfloat16 float16: halves comes first"


def _dense(q, k, v):
    return scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


def _one_caption_after_another(q, k, v, q_starts, k_starts, q_max, k_max, causal):
    """What a variable-length kernel promises."""
    assert q_starts.dtype == k_starts.dtype == torch.int32
    out = []
    for i in range(len(q_starts) - 1):
        rows, keys = slice(q_starts[i], q_starts[i + 1]), slice(k_starts[i], k_starts[i + 1])
        assert rows.stop - rows.start <= q_max
        assert keys.stop - keys.start <= k_max
        parts = (t.transpose(0, 1) for t in (q[rows], k[keys], v[keys]))
        out.append(scaled_dot_product_attention(*parts, is_causal=causal).transpose(0, 1))
    return torch.cat(out)


def _generation_2():
    """The signatures of flash-attn 2.8.3."""

    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
        deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        assert (dropout_p, softmax_scale, causal, window_size) == (0.0, None, False, (-1, -1))
        return _dense(q, k, v)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        assert (dropout_p, softmax_scale, window_size, block_table) == (0.0, None, (-1, -1), None)
        return _one_caption_after_another(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)

    return flash_attn_func, flash_attn_varlen_func


def _generation_3():
    """The signatures of flash-attn 2.8.3's folder hopper."""

    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0,
    ):  # fmt: skip
        assert (softmax_scale, causal, qv) == (None, False, None)
        return _dense(q, k, v)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0,
    ):  # fmt: skip
        assert (seqused_q, seqused_k, softmax_scale, qv) == (None, None, None, None)
        return _one_caption_after_another(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)

    return flash_attn_func, flash_attn_varlen_func


def _generation_4():
    """The leading arguments of flash-attn-4 4.0.0b36, which returns the log-sum-exps (or None) too."""

    def flash_attn_func(q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False):
        assert (qv, gather_kv_indices, softmax_scale, causal) == (None, None, None, False)
        return _dense(q, k, v), None

    def flash_attn_varlen_func(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None,
        softmax_scale=None, causal=False,
    ):  # fmt: skip
        assert (qv, min_seqlen_k, seqused_q, seqused_k, softmax_scale) == (None, None, None, None, None)
        out = _one_caption_after_another(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)
        return out, None

    return flash_attn_func, flash_attn_varlen_func


@pytest.fixture(
    params=[("flash_attn_2", _generation_2), ("flash_attn_3", _generation_3), ("flash_attn_4", _generation_4)]
)
def fake_package(request, monkeypatch):
    """The package of that generation, with its signatures, computing on the CPU."""
    name, functions = request.param
    dense, varlen = functions()
    module = types.ModuleType(FLASH[name].module)
    module.flash_attn_func, module.flash_attn_varlen_func = dense, varlen
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, FLASH[name].module, module)
    for cached in (flash._dense, flash._packed, flash._import_obstacle):
        cached.cache_clear()
    yield FLASH[name]
    for cached in (flash._dense, flash._packed, flash._import_obstacle):
        cached.cache_clear()


@pytest.mark.parametrize("queries", [5, 1])
def test_dense_kernels_are_called_as_they_want(fake_package, queries):
    assert flash._import_obstacle(fake_package.module, fake_package.distribution) is None
    query, key, value = (torch.randn(2, n, 3, 8) for n in (queries, 5, 5))
    torch.testing.assert_close(fake_package.dense()(query, key, value), dense_attention(query, key, value))


def test_variable_length_kernels_are_called_as_they_want(fake_package):
    """Through the tower: full blocks, and the last one with a query to a caption."""
    model = tiny_model()
    text = model.pack(padded_tokens(MIXED, 24))
    x = torch.randn(len(text.ids), 24, dtype=torch.float64)
    groups = TextLayout(text, packed_attention(CPU, torch.float64, 8))
    kernel = TextLayout(text, over_starts(fake_package.packed()))
    wanted, found = (model.transformer(x, layout, True) for layout in (groups, kernel))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("broken", [ModuleNotFoundError("no"), ImportError("undefined symbol: _ZN3c10")])
def test_a_package_that_does_not_import_is_an_obstacle(monkeypatch, broken):
    def raise_it(name):
        raise broken

    flash._import_obstacle.cache_clear()
    monkeypatch.setattr(flash.importlib, "import_module", raise_it)
    reason = flash._import_obstacle("flash_attn.flash_attn_interface", "flash-attn")
    monkeypatch.undo()
    flash._import_obstacle.cache_clear()
    assert reason == (
        "flash-attn is not installed"
        if isinstance(broken, ModuleNotFoundError)
        else "flash-attn is installed, but does not import: undefined symbol: _ZN3c10"
    )


def test_the_installed_torch_takes_our_varlen_arguments():
    pytest.importorskip("torch.nn.attention.varlen", reason="torch < 2.10 has no variable-length attention")
    with FakeTensorMode():
        qkv = [torch.empty(9, 2, 16, dtype=torch.bfloat16) for _ in range(3)]
        starts = torch.empty(3, dtype=torch.int32)
        for causal in (True, False):
            assert torch_varlen()(*qkv, starts, starts, 5, 5, causal).shape == (9, 2, 16)


@pytest.mark.parametrize("pooled_only", [False, True])
def test_a_text_block_with_a_variable_length_kernel_has_no_graph_break(pooled_only):
    pytest.importorskip("torch.nn.attention.varlen", reason="torch < 2.10 has no variable-length attention")
    model = tiny_model(torch.bfloat16)
    text = model.pack(padded_tokens(MIXED, 24)).to("meta")
    block = model.to("meta").transformer.blocks()[0]
    x = torch.empty(len(text.ids), 24, dtype=torch.bfloat16, device="meta")
    layout = TextLayout(text, over_starts(torch_varlen()))
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    assert compiled(x, layout, pooled_only).shape == ((len(MIXED) if pooled_only else len(text.ids)), 24)
