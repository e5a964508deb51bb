"""Token shards: written as specified, mapped in place, refused with both numbers when anything is off."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuworkbench.data import prepare
from gpuworkbench.data.shards.shard_file import (
    HEADER_BYTES,
    UINT16,
    UINT32,
    ShardWriter,
    TokenCheck,
    map_shard,
    scan_shard,
)
from gpuworkbench.data.shards.split_writer import SplitWriter
from gpuworkbench.errors import DataError
from tests.fixtures.data_configs import data_config
from tests.fixtures.shared_data import shared_data


def shard_bytes(tokens: object, *, magic: int = 20240520, version: int = 1, count: int | None = None) -> bytes:
    """A shard put together by hand, from the format's description."""
    body = np.asarray(tokens, dtype="<u4" if magic == 20240801 else "<u2")
    header = np.zeros(256, dtype="<i4")
    header[:3] = (magic, version, len(body) if count is None else count)
    return header.tobytes() + body.tobytes()


def write(path: Path, tokens: object, **header: int) -> Path:
    path.write_bytes(shard_bytes(tokens, **header))
    return path


@pytest.mark.parametrize("variant", [UINT16, UINT32])
def test_writer_writes_the_described_bytes(variant: object, tmp_path: Path) -> None:
    assert variant in (UINT16, UINT32)
    with ShardWriter(tmp_path / "a.bin", variant) as writer:  # type: ignore[arg-type]
        writer.append(np.array([1, 2, 65535]))
        writer.append(np.array([], dtype=np.int64))
        writer.append(np.array([7], dtype=np.uint16))
        writer.finish()
    expected = shard_bytes([1, 2, 65535, 7], magic=variant.magic, version=variant.version)  # type: ignore[attr-defined]
    assert (tmp_path / "a.bin").read_bytes() == expected


def test_scan_finds_count_documents_and_hash(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.bin", UINT16) as writer:
        writer.append(np.array([256, 5, 6, 256, 7]))
        digest = writer.finish()
    scan = scan_shard(tmp_path / "a.bin", TokenCheck(257, "", eot_id=256))
    assert (scan.n_tokens, scan.n_documents, scan.sha256) == (5, 2, digest)


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        (b"", ["empty"]),
        (b"\0" * 100, ["100", "1024"]),
        (shard_bytes([1, 2], magic=20240521), ["20240521", "20240520"]),
        (shard_bytes([1, 2], version=2), ["version 2", "version 1"]),
        (shard_bytes([1, 2], magic=20240801, version=1), ["version 1", "version 7"]),
        (shard_bytes([1, 2], count=3), ["1028", "1030"]),
        (shard_bytes([1, 2], count=1), ["1028", "1026"]),
        (shard_bytes([1, 2], count=-5), ["-5"]),
        (shard_bytes([], count=0), ["0 tokens"]),
        (shard_bytes([1, 2])[:-1], ["1027", "1028"]),
        (np.arange(3000, dtype="<u2").tobytes(), ["magic 65536", "20240520", "data.bin_vocab_size", "no header"]),
        (np.frombuffer(shard_bytes([1, 2]), "<i4").byteswap().tobytes(), ["big-endian", "20240520"]),
        (np.frombuffer(shard_bytes([1], magic=20240801, version=7), "<i4").byteswap().tobytes(), ["20240801"]),
    ],
)
def test_wrong_shard_is_refused_with_both_numbers(content: bytes, numbers: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x_train_0.bin"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        prepare(data_config(path), cache_dir=tmp_path / "cache")
    for number in numbers:
        assert number in caught.value.line()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.tuples(
        st.sampled_from([20240520, 20240801, 0, -1]) | st.integers(-(2**31), 2**31 - 1),
        st.sampled_from([1, 7]) | st.integers(-(2**31), 2**31 - 1),
        st.integers(-3, 12) | st.integers(-(2**31), 2**31 - 1),
    ),
    body=st.binary(max_size=32),
    cut=st.integers(0, HEADER_BYTES + 32),
)
def test_hostile_header_is_mapped_rightly_or_refused(
    header: tuple[int, int, int], body: bytes, cut: int, tmp_path: Path
) -> None:
    words = np.zeros(256, dtype="<i4")
    words[:3] = header
    content = (words.tobytes() + body)[: max(cut, 900)]
    path = tmp_path / "hostile.bin"
    path.write_bytes(content)
    try:
        tokens = map_shard(path)
    except DataError:
        return
    assert header[:2] in ((20240520, 1), (20240801, 7))
    assert len(tokens) == header[2] > 0
    assert tokens.tobytes() == content[HEADER_BYTES:]


def test_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a_train.bin", [1, 2, 300, 4] * 20)
    with pytest.raises(DataError, match="token 300 at position 2, the tokenizer has 257 tokens"):
        prepare(data_config(tmp_path), cache_dir=tmp_path / "cache")


def test_folder_of_shards_is_used_in_place(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write(data / "x_train_000002.bin", np.arange(50, 90))
    write(data / "x_train_000001.bin", np.arange(0, 50), magic=20240801, version=7)
    write(data / "x_val_000000.bin", np.arange(100, 130))
    prepared = prepare(data_config(data), cache_dir=tmp_path / "cache")
    assert (prepared.n_train_tokens, prepared.n_val_tokens) == (90, 30)
    assert prepared.tokens("train").slice(0, 90).tolist() == list(range(90))
    assert prepared.tokens("val").slice(0, 30).tolist() == list(range(100, 130))
    assert prepared.n_documents is None
    assert not list(prepared.directory.glob("*.bin"))


def test_single_shard_holds_out_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "all.bin", np.arange(200))
    prepared = prepare(data_config(path, val_fraction=0.1), cache_dir=tmp_path / "cache")
    assert prepared.tokens("train").slice(0, 180).tolist() == list(range(180))
    assert prepared.tokens("val").slice(0, 20).tolist() == list(range(180, 200))


def test_identity_follows_content_not_place(tmp_path: Path) -> None:
    first = prepare(data_config(write(tmp_path / "a.bin", np.arange(100))), cache_dir=tmp_path / "cache")
    same = prepare(data_config(write(tmp_path / "b.bin", np.arange(100))), cache_dir=tmp_path / "cache")
    other = prepare(data_config(write(tmp_path / "c.bin", np.arange(1, 101))), cache_dir=tmp_path / "cache")
    assert first.sha256 == same.sha256 != other.sha256


def test_shard_that_changed_is_scanned_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", np.arange(100))
    prepare(data_config(path), cache_dir=tmp_path / "cache")
    write(path, np.arange(100) + 200)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="token 257 at position 57"):
        prepare(data_config(path), cache_dir=tmp_path / "cache")


def test_bpe_cannot_be_trained_on_shards(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", np.arange(100))
    with pytest.raises(DataError, match="cannot be trained on token shards"):
        prepare(data_config(path, "bpe-1000"), cache_dir=tmp_path / "cache")


def test_only_validation_shards_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x_val_0.bin", np.arange(100))
    with pytest.raises(DataError, match=r"no \*train\*\.bin"):
        prepare(data_config(tmp_path), cache_dir=tmp_path / "cache")


def test_fineweb_absent_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_DATA_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data("tiktoken")))
    with pytest.raises(DataError) as caught:
        prepare(data_config("fineweb10B", "gpt2"), cache_dir=tmp_path / "cache")
    assert "--set data.source=stdlib --set data.tokenizer=bpe-8192" in caught.value.line()
    with pytest.raises(DataError, match="made with the gpt2 tokenizer"):
        prepare(data_config("fineweb10B", "byte"), cache_dir=tmp_path / "cache")


def test_split_writer_rolls_over_to_further_shards(tmp_path: Path) -> None:
    with SplitWriter(tmp_path, "train", 300, max_shard_tokens=4) as writer:
        writer.append(np.arange(0, 3))
        writer.append(np.arange(3, 10))
        parts = writer.finish()
    assert [(part.path, part.n_tokens) for part in parts] == [
        ("train-00000.bin", 4),
        ("train-00001.bin", 4),
        ("train-00002.bin", 2),
    ]
    tokens = np.concatenate([map_shard(tmp_path / part.path) for part in parts])
    assert tokens.tolist() == list(range(10))
