"""Exported tokenizers: `tokenizers` and `transformers` read them and give our ids."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import json.decoder
import tarfile
import unicodedata
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import tiktoken_ext.openai_public
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as LibraryTokenizer

from gpuworkbench.data.tokenization.bpe import byte_of_character, train_bpe
from gpuworkbench.data.tokenization.tiktoken_names import tiktoken_tokenizer
from gpuworkbench.data.tokenization.tokenizer import EOT_TEXT, BpeTokenizer, ByteTokenizer, Tokenizer
from gpuworkbench.data.tokenization.tokenizer_export import library_pattern, merges_of, to_library, write_tokenizer_json
from gpuworkbench.errors import DataError
from tests.fixtures.shared_data import shared_data

KINDS = ("byte", "bpe", "cl100k", "o200k", "gpt2")


@cache
def stdlib_texts() -> tuple[str, ...]:
    """Real prose and code, some 200 kB."""
    modules = (argparse, ast, inspect, json.decoder, tarfile, topics)
    return tuple(inspect.getsource(module)[:40_000] for module in modules)


def published_pattern(name: str) -> str:
    """The split pattern of a tiktoken vocabulary, without its files."""
    module: Any = tiktoken_ext.openai_public
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_tiktoken_bpe", lambda *_, **__: {})
        return str(module.ENCODING_CONSTRUCTORS[name]()["pat_str"])


def train_with_pattern(pattern: str, vocab_size: int, gap: int = 1) -> BpeTokenizer:
    """A vocabulary like tiktoken's newer ones: that split pattern, and end of text after a gap."""
    trained = LibraryTokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(library_pattern(pattern)), behavior="isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(stdlib_texts()[::2], trainer)
    byte_of = byte_of_character()
    numbers = trained.get_vocab()
    tokens = [bytes(map(byte_of.__getitem__, token)) for token in sorted(numbers, key=numbers.__getitem__)]
    eot_id = len(tokens) + gap
    return BpeTokenizer("like-tiktoken", tokens, eot_id=eot_id, vocab_size=eot_id + 20, pattern=pattern)


@cache
def made(kind: str) -> Tokenizer:
    match kind:
        case "byte":
            return ByteTokenizer()
        case "bpe":
            return train_bpe(stdlib_texts()[::2], 2000)
        case "gpt2":
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data("tiktoken")))
                return tiktoken_tokenizer("gpt2")
        case _:
            return train_with_pattern(published_pattern(f"{kind}_base"), 2000)


@cache
def exported(kind: str) -> LibraryTokenizer:
    """As loaded from its file, special tokens in texts staying text, as ours do."""
    library = LibraryTokenizer.from_str(to_library(made(kind)).to_str())
    library.encode_special_tokens = True
    return library


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    made(request.param)  # skips where its files are absent
    return str(request.param)


def test_ids_on_real_text(kind: str, tmp_path: Path) -> None:
    ours = made(kind)
    write_tokenizer_json(ours, tmp_path)
    theirs = LibraryTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text, ids in zip(stdlib_texts(), ours.encode_batch(stdlib_texts()), strict=True):
        assert theirs.encode(text).ids == ids.tolist()
        assert theirs.decode(ids.tolist(), skip_special_tokens=False) == text
    assert theirs.token_to_id(EOT_TEXT) == ours.eot_id
    assert theirs.encode(EOT_TEXT).ids == [ours.eot_id]


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "rust_book.txt", "peps.txt"])
def test_ids_on_other_text(kind: str, name: str) -> None:
    text = shared_data(name).read_text()[-80_000:]
    assert exported(kind).encode(text).ids == made(kind).encode(text)


# Letters, marks and numbers of many scripts, spaces and line ends of every kind, and what `(?i:'s)` could fold.
ODD = (
    "'sSſtTdDmMlLvVeErRKﬆ’ \t\n\r\v\f\x85\xa0\u1680\u2000\u2028\u3000\u200b\u180e0123456789٣½Ⅷ一éÉǅʰ\u0301\u20dd_<|/.!?"
)


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(max_size=40), st.text(alphabet=ODD, max_size=40)))
def test_ids_on_any_unicode(text: str) -> None:
    for kind in KINDS[:-1]:
        assert exported(kind).encode(text).ids == made(kind).encode(text), kind


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(max_size=40), st.text(alphabet=ODD, max_size=40)))
def test_gpt2_ids_on_any_unicode(text: str) -> None:
    assert exported("gpt2").encode(text).ids == made("gpt2").encode(text)


def test_special_tokens_in_text_can_stay_text(kind: str) -> None:
    for text in (EOT_TEXT, f"a{EOT_TEXT}b"):
        assert exported(kind).encode(text).ids == made(kind).encode(text)
        assert made(kind).eot_id not in exported(kind).encode(text).ids


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("kind", "model_type"), [("byte", None), ("bpe", "gpt2"), ("o200k", None), ("cl100k", "gpt2")])
def test_transformers_reads_it(kind: str, model_type: str | None, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = made(kind)
    write_tokenizer_json(ours, tmp_path)
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": ours.vocab_size}))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    for text in (*stdlib_texts()[:5], "", " ", "a  b\n\n c ", "don't 12345 é 漢字 \U0001f600"):
        ids = ours.encode(text)
        assert theirs(text, verbose=False)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert (theirs.eos_token, theirs.eos_token_id, theirs.bos_token_id) == (EOT_TEXT, ours.eot_id, ours.eot_id)
    assert theirs("<|endoftext|>", split_special_tokens=True)["input_ids"] == ours.encode("<|endoftext|>")


@pytest.mark.parametrize("kind", ["byte", "cl100k"])
def test_files_are_the_same_every_time(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tokenizer_json(made(kind), tmp_path / name)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_merges_by_hand() -> None:
    """`abc` is made of `ab` and `c` although `bc` is a token too; `xyz` cannot be made of two."""
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"x": 3, b"y": 4, b"z": 5, b"ab": 6, b"bc": 7, b"abc": 8, b"xyz": 9}
    assert merges_of(ranks) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c")]


def test_merges_of_gpt2_are_the_published_ones() -> None:
    """The first merges of GPT-2's own vocab.bpe."""
    text = (shared_data("tiktoken") / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee").read_text()
    if not text.startswith("#version"):
        text = (shared_data("tiktoken") / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6").read_text()
    published = [line.split() for line in text.splitlines()[1:]]
    assert [list(pair) for pair in json.loads(exported("gpt2").to_str())["model"]["merges"]] == published


def test_patterns_the_library_cannot_express() -> None:
    assert library_pattern(r"\p{N}{1,3}+|a") == r"\p{N}{1,3}|a"
    with pytest.raises(DataError, match="cannot be written"):
        library_pattern(r"a{1,3}+b")


def test_the_odd_alphabet_is_odd() -> None:
    assert {unicodedata.category(character)[0] for character in ODD} >= set("LMNPSZC")
