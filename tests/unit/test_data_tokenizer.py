"""Tokenizers: the same ids as the `tokenizers` library, exact round trips, and files that load or are refused."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.data import Tokenizer, load_tokenizer
from gpuworkbench.data.corpora.documents import CHUNK_CHARS
from gpuworkbench.data.corpora.stdlib_corpus import open_stdlib
from gpuworkbench.data.tokenization.bpe import train_bpe, train_library_tokenizer
from gpuworkbench.data.tokenization.tiktoken_names import tiktoken_tokenizer
from gpuworkbench.data.tokenization.tokenizer import EOT_TEXT, FILE_NAME, ByteTokenizer
from gpuworkbench.errors import DataError
from tests.fixtures.shared_data import shared_data


@cache
def stdlib_texts() -> tuple[str, ...]:
    """Real prose and code, about 1 MB."""
    return tuple("".join(document.chunks) for document in open_stdlib().documents())[::4]


@cache
def bpe() -> Tokenizer:
    return train_bpe(stdlib_texts()[::2], 1000)


@pytest.fixture(params=["byte", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return ByteTokenizer() if request.param == "byte" else bpe()


def test_bpe_has_the_library_s_ids_on_real_text() -> None:
    """Text beyond the training sample, too: the reference is the library that trained the merges."""
    reference = train_library_tokenizer(stdlib_texts()[::2], 999)
    assert bpe().vocab_size == 1000
    for text, ids in zip(stdlib_texts(), bpe().encode_batch(stdlib_texts()), strict=True):
        assert ids.tolist() == reference.encode(text).ids


def test_bpe_has_the_library_s_ids_on_other_prose() -> None:
    text = shared_data("tinyshakespeare.txt").read_text()[:300_000]
    assert bpe().encode(text) == train_library_tokenizer(stdlib_texts()[::2], 999).encode(text).ids


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_round_trip_of_any_unicode(text: str) -> None:
    for each in (bpe(), ByteTokenizer()):
        ids = each.encode(text)
        assert each.decode(ids) == text
        assert all(0 <= token < each.vocab_size and token != each.eot_id for token in ids)
        (batched,) = each.encode_batch([text])
        assert batched.tolist() == ids


def test_special_tokens_in_text_are_ordinary(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"a{EOT_TEXT}b")
    assert tokenizer.eot_id not in ids
    assert tokenizer.decode(ids) == f"a{EOT_TEXT}b"
    assert tokenizer.decode([tokenizer.eot_id]) == EOT_TEXT


def test_decode_never_raises(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("é")[:1] if tokenizer.name == "byte" else [bpe().encode("\x80")[0]]
    assert tokenizer.decode(half) == "\ufffd"
    assert tokenizer.decode([-1, tokenizer.vocab_size, 10**9]) == "\ufffd" * 3
    assert tokenizer.decode(np.array([], dtype=np.int64)) == ""
    rng = np.random.default_rng(0)
    assert isinstance(tokenizer.decode(rng.integers(0, tokenizer.vocab_size + 64, 5000)), str)


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "\U0001f600"


@pytest.mark.parametrize(("unit", "end"), [(" ", "x"), ("a", ""), ("\n \u3000", "y")])
def test_long_runs_are_encoded_quickly(unit: str, end: str) -> None:
    text = unit * (1_200_000 // len(unit)) + end
    start = time.perf_counter()
    ids = bpe().encode(text)
    assert time.perf_counter() - start < 5.0
    assert bpe().decode(ids) == text


def test_tokens_do_not_depend_on_how_a_text_is_cut() -> None:
    text = "\n".join(stdlib_texts())[: 3 * CHUNK_CHARS]
    whole = bpe()._encoding.encode_ordinary(text)  # type: ignore[attr-defined]
    assert bpe().encode(text) == whole


@pytest.mark.parametrize(
    "line",
    [
        "Съешь ещё этих мягких французских булок, да выпей чаю!\n",
        "Съешь ещё этих мягких французских булок.\r\n",
        "ein Wort und noch eines, ohne Ende; ",
        "快速的棕色狐狸跳过了懒狗。\n",
        "12,5;17,25\n",
        "a line that is indented\n\t",
    ],
)
def test_no_word_is_cut_in_two_whatever_its_script(line: str) -> None:
    tokenizer = train_bpe([line * 100], 700)
    text = f"{line}_" * 7 + line * (2 * CHUNK_CHARS // len(line))  # out of step with the chunks
    assert tokenizer.encode(text) == tokenizer._encoding.encode_ordinary(text)


def test_saved_tokenizer_loads_equal(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.name, loaded.vocab_size, loaded.eot_id) == (tokenizer.name, tokenizer.vocab_size, tokenizer.eot_id)
    assert loaded.sha256 == tokenizer.sha256
    text = stdlib_texts()[3]
    assert loaded.encode(text) == tokenizer.encode(text)


def test_training_is_the_same_in_another_process() -> None:
    code = (
        "from gpuworkbench.data.tokenization.bpe import train_bpe\n"
        "from gpuworkbench.data.corpora.stdlib_corpus import open_stdlib\n"
        "texts = [''.join(d.chunks) for d in open_stdlib().documents()][::4][::2]\n"
        "print(train_bpe(texts, 1000).sha256)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == bpe().sha256


def test_small_text_gives_a_smaller_vocabulary() -> None:
    small = train_bpe(["the cat sat on the mat, the cat sat"], 5000)
    assert 257 < small.vocab_size < 300
    assert small.name == "bpe-5000"
    assert small.eot_id == small.vocab_size - 1


def test_gpt2_through_tiktoken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data("tiktoken")))
    gpt2 = tiktoken_tokenizer("gpt2")
    assert (gpt2.vocab_size, gpt2.eot_id) == (50257, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]  # as published with GPT-2
    gpt2.save(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "absent"))
    loaded = load_tokenizer(tmp_path)  # a run keeps its vocabulary: no network
    text = stdlib_texts()[5]
    assert loaded.encode(text) == gpt2.encode(text)
    assert loaded.decode(loaded.encode(text)) == text


@pytest.mark.parametrize("failure", ["refused", "silent"])
def test_vocabulary_offline_is_one_quick_line(failure: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import requests
    from tiktoken import load, registry

    from gpuworkbench.data.tokenization import tiktoken_files

    released = threading.Event()

    def get(address: str, **options: object) -> None:
        assert options["timeout"] == (tiktoken_files.CONNECT_LIMIT_S, tiktoken_files.READ_LIMIT_S)
        if failure == "silent":
            released.wait(20)
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setattr(tiktoken_files, "CONNECT_LIMIT_S", 0.2)
    monkeypatch.setattr(registry, "ENCODINGS", {})
    original = load.read_file_cached
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        tiktoken_tokenizer("gpt2")
    assert time.perf_counter() - start < 3.0
    assert "--set data.source=stdlib --set data.tokenizer=bpe-8192" in caught.value.line()
    assert "TIKTOKEN_CACHE_DIR" in caught.value.line()
    released.set()
    deadline = time.monotonic() + 5
    while load.read_file_cached is not original and time.monotonic() < deadline:
        time.sleep(0.01)
    assert load.read_file_cached is original


def _stored(**changes: object) -> bytes:
    stored = msgspec.json.decode(train_bpe(["a b"], 300)._content)
    return msgspec.json.encode({**stored, **changes})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": "other", "kind": "byte"}',
        b'{"kind": "bpe", "name": "x", "vocab_size": 300, "eot_id": 299, "tokens": ["YQ=="]}',
    ],
    ids=range(7),
)
def test_hostile_tokenizer_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(DataError, match="not a saved tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"eot_id": 3},
        {"eot_id": -1},
        {"vocab_size": 10},
        {"vocab_size": 2**40},
        {"pattern": "("},
        {"tokens": ["YQ=="] * 300},
        {"tokens": ["not base64!"]},
        {"extra": 1},
    ],
)
def test_inconsistent_tokenizer_file_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(_stored(**changes))
    with pytest.raises(DataError, match="not a saved tokenizer"):
        load_tokenizer(tmp_path)


def test_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read data at .*tokenizer\.json"):
        load_tokenizer(tmp_path)
