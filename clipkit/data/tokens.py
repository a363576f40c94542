# SPDX-License-Identifier: Apache-2.0
"""CLIP's byte-pair tokenizer: the ids of OpenAI's and open_clip's, without their cost.

A caption's words repeat, so each word is encoded once (by the Rust `tokenizers` package) and remembered; a whole
Rust pipeline for each caption measured slower. Captions of plain ASCII skip `ftfy` and `regex`, which change nothing
in them.
"""

from __future__ import annotations

import functools
import gzip
import html
import importlib
import importlib.resources
import importlib.util
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import LongTensor, Tensor

from clipkit.errors import type_error, value_error

if TYPE_CHECKING:
    from clipkit.encoders.config import CLIPConfig

CLIP_VOCAB_SIZE = 49408
CLIP_CONTEXT_LENGTH = 77
START, END = "<start_of_text>", "<end_of_text>"

_BYTE_TOKENS = 512
_MERGES = CLIP_VOCAB_SIZE - _BYTE_TOKENS - 2
_CACHED_WORDS = 200_000
_INSTALL = 'pip install "clipkit-torch[train]"'

_SUFFIXES = "'s|'t|'re|'ve|'m|'ll|'d"
_ASCII_WORD = re.compile(rf"{START}|{END}|{_SUFFIXES}|[a-z]+|[0-9]|[^\sa-z0-9]+")
_ANY_WORD = rf"{START}|{END}|{_SUFFIXES}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
# ftfy and html.unescape leave such text as it is: no entity, no control character, nothing but ASCII
_PLAIN = re.compile(r"[\t\n\r !-%'-~]*")


class Tokenizer:
    """Captions to ids.

    vocab_size: 49408 is CLIP's. A smaller number keeps the first merges only (the most frequent pairs), which is a
    valid vocabulary of its own: smaller embeddings for small models, rare words in more pieces.
    context_length: ids in a row. Needs the packages tokenizers, ftfy and regex (ModuleNotFoundError names the missing).
    """

    def __init__(self, vocab_size: int = CLIP_VOCAB_SIZE, context_length: int = CLIP_CONTEXT_LENGTH) -> None:
        if not _BYTE_TOKENS + 2 <= vocab_size <= CLIP_VOCAB_SIZE:
            raise value_error(
                "vocab_size",
                got=vocab_size,
                want=f"{_BYTE_TOKENS + 2} (bytes alone) to {CLIP_VOCAB_SIZE}",
                fix=f"CLIP's own is {CLIP_VOCAB_SIZE}",
            )
        for package in ("tokenizers", "ftfy", "regex"):
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(f"the tokenizer needs the package {package}: {_INSTALL}", name=package)
        self.vocab_size = vocab_size
        self.context_length = _checked_length(context_length)
        self.sot_id, self.eot_id = vocab_size - 2, vocab_size - 1
        self._pieces, self._merge_words = _vocabulary(vocab_size)
        self._ids_of_word: dict[str, list[int]] = self._special_words()

    def __call__(self, texts: str | Iterable[str], context_length: int | None = None) -> LongTensor:
        """int64 [n, context_length]: start, the caption, end, zeros.

        A longer caption is cut so that the end token stays. One string is a batch of one. TypeError for anything but
        strings.
        """
        length = self.context_length if context_length is None else _checked_length(context_length)
        if not isinstance(texts, Iterable):
            raise _not_text(texts)
        captions = [texts] if isinstance(texts, str) else list(texts)
        rows = np.zeros((len(captions), length), dtype=np.int64)
        for row, caption in zip(rows, captions, strict=True):
            ids = [self.sot_id, *self.encode(caption), self.eot_id]
            if len(ids) > length:
                ids = [*ids[: length - 1], self.eot_id]
            row[: len(ids)] = ids
        return cast(LongTensor, torch.from_numpy(rows))

    def encode(self, text: str) -> list[int]:
        """The ids of a caption, without start and end tokens, of any length."""
        if not isinstance(text, str):
            raise _not_text(text)
        ids: list[int] = []
        for word in self._split(text):
            known = self._ids_of_word.get(word)
            ids += self._remember(word) if known is None else known
        return ids

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of ids; a space after each word, special tokens written out, broken UTF-8 replaced."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else ids
        letters = "".join(self._pieces[number] for number in numbers)
        codes = _byte_of_letter()
        return bytes(codes[letter] for letter in letters).decode("utf-8", errors="replace").replace("</w>", " ")

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[int, int]]:
        return Tokenizer, (self.vocab_size, self.context_length)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, context_length={self.context_length})"

    def _split(self, text: str) -> list[str]:
        if _PLAIN.fullmatch(text):
            return _ASCII_WORD.findall(text.lower())
        return _any_word().findall(clean(text))

    def _remember(self, word: str) -> list[int]:
        letters = word.encode("utf-8").decode("latin-1").translate(_letter_of_byte())
        ids = [piece.id for piece in self._merge_words.tokenize(letters)]
        if len(self._ids_of_word) >= _CACHED_WORDS:
            self._ids_of_word = self._special_words()
        self._ids_of_word[word] = ids
        return ids

    def _special_words(self) -> dict[str, list[int]]:
        return {START: [self.sot_id], END: [self.eot_id]}


def get_tokenizer(model: str | CLIPConfig) -> Tokenizer:
    """The tokenizer of a model, by its name or by its configuration (`model.config`, where overrides count).

    ValueError for an unknown name; ModuleNotFoundError where a needed package is missing.
    """
    from clipkit.encoders.config import CLIPConfig
    from clipkit.encoders.zoo import get_config

    config = model if isinstance(model, CLIPConfig) else get_config(model)
    return Tokenizer(config.text.vocab_size, config.text.context_length)


def clean(text: str) -> str:
    """CLIP's normalisation: mojibake repaired, entities too (twice), each run of whitespace one space, lower case."""
    repaired = html.unescape(html.unescape(_ftfy().fix_text(text)))
    return " ".join(repaired.split()).lower()


def _not_text(value: object) -> TypeError:
    return type_error(
        "texts", got=type(value).__name__, want="a string or a sequence of strings", fix="decode bytes first"
    )


def _checked_length(context_length: int) -> int:
    if context_length < 1:
        raise value_error("context_length", got=context_length, want="at least 1", fix="CLIP's own is 77")
    return context_length


@functools.lru_cache(maxsize=4)
def _vocabulary(vocab_size: int) -> tuple[list[str], Any]:
    """All pieces by id, and the Rust model that merges a word's bytes into them."""
    from tokenizers.models import BPE

    packed = (importlib.resources.files("clipkit.data.clip_vocabulary") / "merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").splitlines()
    assert len(lines) == _MERGES, "the vocabulary file is damaged"
    pairs = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    pairs = pairs[: vocab_size - _BYTE_TOKENS - 2]
    letters = list(_byte_of_letter())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in pairs), START, END]
    model = BPE({piece: i for i, piece in enumerate(pieces)}, pairs, cache_capacity=0, end_of_word_suffix="</w>")
    return pieces, model


@functools.lru_cache(maxsize=1)
def _byte_of_letter() -> dict[str, int]:
    """Each byte's stand-in letter, in the vocabulary's order.

    Visible Latin-1 characters stand for themselves; the other 68 bytes take the letters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{chr(byte): byte for byte in visible}, **{chr(256 + i): byte for i, byte in enumerate(hidden)}}


@functools.lru_cache(maxsize=1)
def _letter_of_byte() -> dict[int, str]:
    return {byte: letter for letter, byte in _byte_of_letter().items()}


@functools.lru_cache(maxsize=1)
def _any_word() -> Any:
    regex = importlib.import_module("regex")
    return regex.compile(_ANY_WORD, regex.IGNORECASE)


@functools.lru_cache(maxsize=1)
def _ftfy() -> Any:
    return importlib.import_module("ftfy")
