# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001  (look-alike characters are the point)
"""The tokenizer's ids are open_clip's, on anything."""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clipkit
from clipkit.data import tokens
from clipkit.data.tokens import CLIP_VOCAB_SIZE, Tokenizer, get_tokenizer
from clipkit.encoders import get_config
from tests.encoders.corpus import NASTY

# what open_clip 3.3.0's tokenizer encodes each caption of the corpus to
GOLDEN = json.loads(Path(__file__).with_name("golden_tokens.json").read_text())


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return clipkit.get_tokenizer("ViT-B-32")


@pytest.fixture(scope="module")
def theirs(open_clip):
    return open_clip.get_tokenizer("ViT-B-32")


@pytest.mark.parametrize(("caption", "ids"), list(zip(NASTY, GOLDEN, strict=True)))
def test_nasty_captions_give_the_stored_ids(ours, caption, ids):
    assert ours.encode(caption) == ids
    assert ours.encode(caption) == ids, "remembered words must not change the result"


def test_nasty_captions_give_open_clips_rows_and_texts(ours, theirs):
    for length in (None, 77, 16, 3, 2, 1):
        assert torch.equal(ours(NASTY, context_length=length), theirs(NASTY, context_length=length))
    for ids in GOLDEN:
        assert ours.decode(ids) == theirs.decode(ids)
    assert (ours.vocab_size, ours.sot_id, ours.eot_id) == (
        theirs.vocab_size,
        theirs.sot_token_id,
        theirs.eot_token_id,
    )


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_gives_open_clips_ids(ours, theirs, text):
    assert ours.encode(text) == theirs.encode(text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=[chr(code) for code in range(128)], max_size=60))
def test_the_short_way_for_ascii_gives_open_clips_ids(ours, theirs, text):
    assert ours.encode(text) == theirs.encode(text)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([*"&#;<>x01aſ'’“ \u00a0", "amp", "lt", "&eacute;", "â€™", "Ã©", "'s", "ll"]), max_size=25)
)
def test_entities_and_mojibake_give_open_clips_ids(ours, theirs, pieces):
    text = "".join(pieces)
    assert ours.encode(text) == theirs.encode(text)


def test_every_character_of_the_basic_plane_gives_open_clips_ids(ours, theirs):
    for start in range(0, 0x10000, 64):
        text = " ".join(chr(code) for code in range(start, start + 64) if not 0xD800 <= code < 0xE000)
        assert ours.encode(text) == theirs.encode(text), hex(start)


def test_rows_start_and_end_and_a_cut_keeps_the_end(ours):
    rows = ours(["a cat", "word " * 100], context_length=6)
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[49406, 320, 2368, 49407, 0, 0], [49406, 2653, 2653, 2653, 2653, 49407]]
    assert torch.equal(ours("a cat"), ours(["a cat"]))
    assert ours([]).shape == (0, 77)


def test_decoding_returns_the_clean_text(ours):
    assert ours.decode(ours.encode("A Photo of a café, isn't it?")) == "a photo of a café , isn 't it ? "
    assert ours.decode(ours("hi")[0][:3]) == "<start_of_text>hi <end_of_text>"


@pytest.mark.parametrize("size", [514, 600, 8192])
def test_a_smaller_vocabulary_is_a_valid_one_of_the_same_text(ours, size):
    small = Tokenizer(size)
    for caption in NASTY:
        ids = small.encode(caption)
        assert all(0 <= i < size for i in ids)
        assert small.decode(ids) == ours.decode(ours.encode(caption))
    row = small("a dog")[0]
    assert (row[0].item(), row.max().item(), row.argmax().item()) == (
        size - 2,
        size - 1,
        len(small.encode("a dog")) + 1,
    )


def test_a_smaller_vocabulary_agrees_where_its_merges_suffice(ours):
    assert Tokenizer(8192).encode("a photo of a red dog") == ours.encode("a photo of a red dog")


def test_context_and_vocabulary_come_from_the_model():
    small = get_tokenizer("conv-tiny-32px")
    text = get_config("conv-tiny-32px").text
    assert (small.context_length, small.vocab_size) == (text.context_length, text.vocab_size)
    changed = get_config("conv-tiny-32px").replace({"context_length": 20, "vocab_size": 1000})
    assert get_tokenizer(changed)("a cat").shape == (1, 20)
    assert get_tokenizer(changed).eot_id == 999


def test_it_travels_to_workers(ours):
    copy = pickle.loads(pickle.dumps(Tokenizer(1000, 20)))
    assert (copy.vocab_size, copy.context_length) == (1000, 20)
    assert copy.encode("a cat") == Tokenizer(1000).encode("a cat")


def test_the_memory_of_words_is_bounded(monkeypatch):
    monkeypatch.setattr(tokens, "_CACHED_WORDS", 50)
    tokenizer = Tokenizer(1000)
    expected = Tokenizer(1000)
    for number in range(200):
        word = "x" + "abcdefghij"[number % 10] * (number // 10)
        assert tokenizer.encode(word) == expected.encode(word)
        assert len(tokenizer._ids_of_word) <= 51
    assert tokenizer.encode("<end_of_text>") == [999]


def test_the_vocabulary_file_is_the_recorded_one_with_its_licence():
    folder = importlib.resources.files("clipkit.data.clip_vocabulary")
    text = gzip.decompress((folder / "merges.txt.gz").read_bytes())
    assert hashlib.sha256(text).hexdigest() == "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"
    assert "MIT License" in (folder / "LICENSE").read_text()


def test_importing_and_encoding_ascii_loads_no_text_package():
    script = (
        "import sys, clipkit.data.tokens as t; t.Tokenizer().encode('A plain caption: it\\'s 2 dogs.');"
        "print([m for m in ('ftfy', 'regex', 'PIL', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["tokenizers", "ftfy", "regex"])
def test_a_missing_package_is_named_at_once(monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))
    with pytest.raises(
        ModuleNotFoundError, match=rf'needs the package {package}: pip install "clipkit-torch\[train\]"'
    ):
        Tokenizer()


@pytest.mark.parametrize("texts", [None, 3, [3], [b"bytes"], [["nested"]]])
def test_what_is_no_string_is_refused(ours, texts):
    with pytest.raises(TypeError, match=r"texts: got \w+; want a string or a sequence of strings"):
        ours(texts)


def test_wrong_sizes_are_refused(ours):
    with pytest.raises(ValueError, match="context_length: got 0"):
        ours("a", context_length=0)
    for size in (513, CLIP_VOCAB_SIZE + 1):
        with pytest.raises(ValueError, match=f"vocab_size: got {size}"):
            Tokenizer(size)
    with pytest.raises(ValueError, match="name: got 'ViT-B'"):
        get_tokenizer("ViT-B")
