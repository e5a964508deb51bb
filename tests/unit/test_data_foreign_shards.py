"""Shards made elsewhere: without a header, with a vocabulary that no tokenizer here has, with an answer mask."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gpuworkbench.config.schema import RunConfig, SampleConfig
from gpuworkbench.data import PreparedData, cache_root, prepare
from gpuworkbench.data.sources import resolve_source
from gpuworkbench.data.tokenization.ids_tokenizer import IdsTokenizer
from gpuworkbench.data.tokenization.tokenizer import load_tokenizer
from gpuworkbench.errors import DataError
from tests.fixtures.data_configs import data_config
from tests.unit.test_data_shards import write

LLAMA_3_VOCABULARY = 128_256


def prepared(source: Path, tokenizer: str = "byte", **keys: Any) -> PreparedData:
    return prepare(data_config(source, tokenizer, **keys), cache_dir=source.parent / "cache")


def raw(path: Path, tokens: object, dtype: str = "<u2") -> Path:
    """As numpy's tofile leaves it, which is how nanoGPT's prepare.py writes its files."""
    np.asarray(tokens, dtype=dtype).tofile(path)
    return path


def tokens_of(data: PreparedData, split: Any = "train") -> list[int]:
    tokens = data.tokens(split)
    return tokens.slice(0, len(tokens)).tolist()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_files_without_a_header_are_read_once_their_vocabulary_is_known(
    vocab_size: int, dtype: str, tmp_path: Path
) -> None:
    train = np.random.default_rng(0).integers(0, vocab_size, 500)
    raw(tmp_path / "train.bin", train, dtype)
    raw(tmp_path / "val.bin", train[:80], dtype)
    for source in (tmp_path / "train.bin", tmp_path):
        data = prepared(source, "ids", bin_vocab_size=vocab_size)
        assert tokens_of(data) == train.tolist()
        assert tokens_of(data, "val") == train[:80].tolist()
        assert data.vocab_size == vocab_size
        assert data.n_documents is None
        assert prepare(data_config(source, "ids", bin_vocab_size=vocab_size), cache_dir=source.parent / "cache") == data


def test_a_single_file_without_a_header_holds_out_its_end(tmp_path: Path) -> None:
    data = prepared(raw(tmp_path / "all.bin", np.arange(200)), "byte", bin_vocab_size=257, val_fraction=0.1)
    assert tokens_of(data) == list(range(180))
    assert tokens_of(data, "val") == list(range(180, 200))


@pytest.mark.parametrize(
    ("tokens", "keys", "reason"),
    [
        (
            [1, 2, 64, 65] * 9,
            {"bin_vocab_size": 65},
            "token 65 at position 3, the vocabulary was said to have 65 tokens",
        ),
        (
            [1, 300] * 9,
            {"tokenizer": "byte", "bin_vocab_size": 50_000},
            "token 300 at position 1, the tokenizer has 257",
        ),
        ([1, 100] * 9, {"tokenizer": "byte", "bin_vocab_size": 100}, "was said to have 100 tokens"),
        ([1, 2] * 9, {}, "144 bytes, its header alone needs 1024"),
        ([1, 2] * 900, {}, "magic 131073, not 20240520"),
        ([1, 2] * 900, {}, "set data.bin_vocab_size=50257"),
        ([], {"bin_vocab_size": 65}, "is empty"),
        ([1, 2] * 9, {"tokenizer": "bpe-300", "bin_vocab_size": 65}, "cannot be trained on token shards"),
    ],
)
def test_bare_tokens_are_refused_with_what_is_missing(
    tokens: list[int], keys: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    keys = {"tokenizer": "ids" if "bin_vocab_size" in keys else "byte", **keys}
    with pytest.raises(DataError) as caught:
        prepared(raw(tmp_path / "a.bin", tokens * 4), **keys)
    assert reason in caught.value.line()


def test_half_a_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\1\0\2")
    with pytest.raises(DataError, match="3 bytes, tokens without a header take 2 bytes each"):
        prepared(tmp_path / "a.bin", "ids", bin_vocab_size=65)


def test_a_header_counts_also_where_none_is_needed(tmp_path: Path) -> None:
    data = prepared(write(tmp_path / "a.bin", np.arange(100)), "ids", bin_vocab_size=100)
    assert tokens_of(data) == list(range(95))
    big_endian = np.arange(600, dtype="<i4")
    big_endian[0] = 20240520
    (tmp_path / "b.bin").write_bytes(big_endian.byteswap().tobytes())
    with pytest.raises(DataError, match="big-endian"):
        prepared(tmp_path / "b.bin", "ids", bin_vocab_size=100)


def test_a_vocabulary_that_is_not_here_takes_the_models_size(tmp_path: Path) -> None:
    tokens = [128_000, 9906, 1917, 128_001] * 40
    path = write(tmp_path / "llama_train.bin", tokens, magic=20240801, version=7)
    config = data_config(path, "ids", vocab_size=LLAMA_3_VOCABULARY)
    data = prepare(config, cache_dir=tmp_path / "cache")
    assert data.vocab_size == LLAMA_3_VOCABULARY
    assert tokens_of(data)[:4] == tokens[:4]
    assert any("token ids" in warning for warning in data.warnings)
    with pytest.raises(DataError, match="does not say how many tokens"):
        prepared(path, "ids")
    with pytest.raises(DataError, match="token 128000 at position 0"):
        prepare(data_config(path, "ids", vocab_size=128_000), cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match=r"model\.vocab_size is 200.*128256 tokens"):
        prepare(
            data_config(path, "ids", vocab_size=200, bin_vocab_size=LLAMA_3_VOCABULARY), cache_dir=tmp_path / "cache"
        )


def test_ids_are_for_shards_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 50)
    with pytest.raises(DataError, match="ids is for token shards, not for text"):
        prepared(tmp_path / "a.txt", "ids", bin_vocab_size=65)


def test_a_prompt_of_words_is_refused_before_training(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.bin", np.arange(60))
    config: RunConfig = data_config(path, "ids", bin_vocab_size=65)
    sampling = msgspec.structs.replace(config, sample=SampleConfig(interval_steps=5, prompt="Once upon"))
    with pytest.raises(DataError, match="'Once' is not a token id below 65"):
        prepare(sampling, cache_dir=tmp_path / "cache")
    numbers = msgspec.structs.replace(config, sample=SampleConfig(interval_steps=5, prompt="3 14"))
    assert prepare(numbers, cache_dir=tmp_path / "cache").tokenizer().encode("3 14") == [3, 14]


def test_ids_tokenizer_is_saved_and_reads_what_it_writes(tmp_path: Path) -> None:
    tokenizer = IdsTokenizer(65)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.sha256, again.vocab_size, again.name) == (tokenizer.sha256, 65, "ids")
    assert again.encode(again.decode(np.array([0, 64, 7]))) == [0, 64, 7]
    assert again.sha256 != IdsTokenizer(66).sha256
    for text in ("65", "-1", "x", "1.0", "９", "9" * 400):
        with pytest.raises(DataError, match="is not a token id below 65"):
            again.encode(text)


def test_masks_beside_shards_are_used_part_of_the_identity_and_can_be_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "a_train.bin", np.arange(100))
    write(tmp_path / "a_val.bin", np.arange(100, 150))
    plain = prepared(path)
    mask = np.arange(100) % 4 == 0
    (tmp_path / "a_train.mask").write_bytes(mask.tobytes())
    (tmp_path / "a_val.mask").write_bytes(b"\1" * 50)
    data = prepared(path)
    scored = data.tokens("train").scored(0, 100)
    assert scored is not None
    assert scored.tolist() == mask.tolist()
    everything = prepared(path, loss_on="all")
    assert plain.sha256 == everything.sha256 != data.sha256
    assert not everything.tokens("train").has_mask
    (tmp_path / "a_train.mask").write_bytes((~mask).tobytes())
    assert prepared(path).sha256 != data.sha256
    (tmp_path / "a_val.mask").unlink()
    with pytest.raises(DataError, match=r"a_val\.bin has no answer mask a_val\.mask"):
        prepared(path, loss_on="answers")


@pytest.mark.parametrize(
    ("mask", "reason"), [(b"\0" * 100, "not one of the 100 train tokens is scored"), (b"\1" * 99, "99 bytes")]
)
def test_a_mask_that_leaves_nothing_or_does_not_fit_is_refused(mask: bytes, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a_train.bin", np.arange(100))
    write(tmp_path / "a_val.bin", np.arange(100, 150))
    (tmp_path / "a_train.mask").write_bytes(mask)
    with pytest.raises(DataError, match=reason):
        prepared(path)


def test_the_end_that_is_held_out_keeps_its_part_of_the_mask(tmp_path: Path) -> None:
    path = write(tmp_path / "all.bin", np.arange(100))
    mask = np.arange(100) % 3 == 0
    (tmp_path / "all.mask").write_bytes(mask.tobytes())
    data = prepared(path, val_fraction=0.2)
    got = data.tokens("val").scored(0, 20)
    assert got is not None
    assert got.tolist() == mask[80:].tolist()


def test_an_edit_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    """The change time shows it: no call sets that back."""
    path = write(tmp_path / "a.bin", np.arange(100))
    info = path.stat()
    before = prepared(path)
    write(path, np.arange(1, 101))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert path.stat().st_mtime_ns == info.st_mtime_ns
    assert prepared(path).sha256 != before.sha256


def test_a_pipe_beside_a_shard_is_refused_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a_train.bin", np.arange(100))
    os.mkfifo(tmp_path / "a_val.bin")
    with pytest.raises(DataError, match="a named pipe"):
        prepared(path)
    os.unlink(tmp_path / "a_val.bin")
    os.mkfifo(tmp_path / "a_train.mask")
    with pytest.raises(DataError, match="a named pipe"):
        prepared(path)


def test_resolving_only_looks_at_names(tmp_path: Path) -> None:
    (tmp_path / "x_train.bin").write_bytes(b"not a shard")
    source = resolve_source(data_config(tmp_path, "ids", bin_vocab_size=65).data, cache_root(tmp_path / "cache"))
    assert source.fingerprint
