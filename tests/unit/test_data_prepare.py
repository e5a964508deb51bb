"""Preparing through the cache: deterministic, found again, rebuilt when damaged, safe when two do it at once."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gpuworkbench.data import PreparedData, absolute_source, cache_root, check_eval_tokens, prepare, preview
from gpuworkbench.data.synthetic import ENTROPY_RATE_NATS
from gpuworkbench.errors import ConfigError, DataError
from gpuworkbench.io import Files
from tests.fixtures.data_configs import data_config, eval_config
from tests.fixtures.shared_data import shared_data

TEXT = "".join(f"Line {number} of a text that is long enough to be split.\n" for number in range(300))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def all_tokens(prepared: PreparedData, split: str) -> np.ndarray:
    tokens = prepared.tokens(split)  # type: ignore[arg-type]
    return tokens.slice(0, len(tokens))


def test_second_preparation_is_found(text_file: Path, tmp_path: Path) -> None:
    messages: list[str] = []

    def prepared() -> PreparedData:
        config = data_config(text_file, "bpe-300")
        return prepare(config, cache_dir=tmp_path / "c", on_progress=lambda message, _: messages.append(message))

    first = prepared()
    assert messages
    messages.clear()
    second = prepared()
    assert second == first
    assert not messages
    assert first.directory.parent == tmp_path / "c" / "data"
    assert sorted(path.name for path in first.directory.iterdir()) == [
        "meta.json",
        "tokenizer",
        "train-00000.bin",
        "val-00000.bin",
    ]


def test_identity_is_the_same_in_another_cache_and_differs_with_every_setting(text_file: Path, tmp_path: Path) -> None:
    base = prepare(data_config(text_file), cache_dir=tmp_path / "a")
    assert prepare(data_config(text_file), cache_dir=tmp_path / "b").sha256 == base.sha256
    variants = [
        data_config(text_file, "bpe-300"),
        data_config(text_file, val_fraction=0.2),
        data_config("synthetic", synthetic_tokens=1000),
        data_config("synthetic", synthetic_tokens=1000, seed=1),
    ]
    identities = {prepare(config, cache_dir=tmp_path / "a").sha256 for config in variants}
    assert len(identities | {base.sha256}) == 5


def test_edited_text_is_read_again(text_file: Path, tmp_path: Path) -> None:
    before = prepare(data_config(text_file), cache_dir=tmp_path / "c")
    text_file.write_text(TEXT.replace("Line", "Part"))
    os.utime(text_file, ns=(5, 5))
    assert prepare(data_config(text_file), cache_dir=tmp_path / "c").sha256 != before.sha256


@pytest.mark.parametrize("name", ["train-00000.bin", "val-00000.bin", "meta.json", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_damaged_cache_is_rebuilt(name: str, damage: str, text_file: Path, tmp_path: Path) -> None:
    config = data_config(text_file, "bpe-300")
    prepared = prepare(config, cache_dir=tmp_path / "c")
    expected = all_tokens(prepared, "train").tolist()
    path = prepared.directory / name
    content = path.read_bytes()
    match damage:
        case "flip":
            middle = len(content) * 3 // 4
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        case "truncate":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case _:
            path.unlink()
    again = prepare(config, cache_dir=tmp_path / "c")
    assert again == prepared
    assert all_tokens(again, "train").tolist() == expected
    assert path.read_bytes() == content
    assert [entry.name for entry in (tmp_path / "c" / "data").iterdir() if entry.name.startswith(".tmp")] == []


def test_every_flipped_bit_of_meta_is_noticed(text_file: Path, tmp_path: Path) -> None:
    from gpuworkbench.data import cache

    prepared = prepare(data_config(text_file), cache_dir=tmp_path / "c")
    path = prepared.directory / "meta.json"
    content = path.read_bytes()
    for bit in range(0, len(content) * 8, 7):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found = cache.find(prepared.directory)
        assert found is None or found == prepared  # a flip in white space changes nothing


class _FullDisk(Files):
    """Fails the n-th operation that writes."""

    def __init__(self, fail_at: int) -> None:
        self.operations = 0
        self.fail_at = fail_at

    def _count(self) -> None:
        self.operations += 1
        if self.operations == self.fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_write(self, path: Path) -> int:
        self._count()
        return super().open_write(path)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._count()
        return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        self._count()
        super().fsync(fd)

    def fsync_directory(self, path: Path) -> None:
        self._count()
        super().fsync_directory(path)

    def mkdir(self, path: Path) -> None:
        self._count()
        super().mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)


def test_full_disk_at_any_operation_is_one_line_and_leaves_nothing_half_made(text_file: Path, tmp_path: Path) -> None:
    counter = _FullDisk(0)
    expected = prepare(data_config(text_file), cache_dir=tmp_path / "counted", files=counter)
    assert counter.operations > 10
    for fail_at in range(1, counter.operations + 1):
        root = tmp_path / f"c{fail_at}"
        if fail_at == counter.operations:  # the directory is whole and has its name: good enough for a cache
            assert prepare(data_config(text_file), cache_dir=root, files=_FullDisk(fail_at)) is not None
            continue
        with pytest.raises(DataError, match=r"cannot write the data cache.*No space left"):
            prepare(data_config(text_file), cache_dir=root, files=_FullDisk(fail_at))
        leftovers = [path for path in (root / "data").iterdir() if path.is_dir()]
        assert all(not path.name.startswith(".tmp") for path in leftovers)
        assert prepare(data_config(text_file), cache_dir=root).sha256 == expected.sha256


def test_cache_that_cannot_be_made_is_one_line(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write the data cache") as caught:
        prepare(data_config(text_file), cache_dir=tmp_path / "file")
    assert "GPUWORKBENCH_CACHE_DIR" in caught.value.hint


def test_threads_prepare_once(text_file: Path, tmp_path: Path) -> None:
    results: list[PreparedData] = []
    trained: list[str] = []

    def work() -> None:
        results.append(
            prepare(
                data_config(text_file, "bpe-300"),
                cache_dir=tmp_path / "c",
                on_progress=lambda message, _: trained.append(message) if "training" in message else None,
            )
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(result.sha256 for result in results)) == 1
    assert len(trained) == 1


def test_processes_prepare_safely_at_once(text_file: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.fixtures.data_configs import data_config; from gpuworkbench.data import prepare\n"
        "p = prepare(data_config(sys.argv[1], 'bpe-300'), cache_dir=Path(sys.argv[2]))\n"
        "print(p.sha256, p.tokens('train').slice(0, 9))"
    )
    command = [sys.executable, "-c", code, str(text_file), str(tmp_path / "c")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], outputs
    assert len({out for out, _ in outputs}) == 1


def test_killed_preparation_leaves_no_trap(text_file: Path, tmp_path: Path) -> None:
    """What a SIGKILL leaves: a temporary directory and an unlocked lock file."""
    config = data_config(text_file)
    prepared = prepare(config, cache_dir=tmp_path / "c")
    left = prepared.directory.with_name(f".tmp-1-{prepared.directory.name}")
    shutil.move(prepared.directory, left)
    os.utime(left, (0, 0))
    assert prepare(config, cache_dir=tmp_path / "c") == prepared
    assert not left.exists()


def test_vocabulary_mismatch_names_both_sides(text_file: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(DataError, match=r"model.vocab_size is 200.*'byte' has 257"):
        prepare(
            data_config(text_file, vocab_size=200),
            cache_dir=tmp_path / "c",
            on_progress=lambda stage, _: stages.append(stage),
        )
    assert stages == [], "refused before anything is encoded"
    assert [path for path in (tmp_path / "c" / "data").iterdir() if path.is_dir()] == []
    assert prepare(data_config(text_file, vocab_size=50304), cache_dir=tmp_path / "c").vocab_size == 257


def test_too_short_text_names_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("0123456789" * 2)
    n_train = prepare(data_config(path, seq_len=4), cache_dir=tmp_path / "c").n_train_tokens
    with pytest.raises(DataError, match=rf"{n_train} training tokens.*needs {n_train + 1}"):
        prepare(data_config(path, seq_len=n_train), cache_dir=tmp_path / "c")
    prepare(data_config(path, seq_len=n_train - 1), cache_dir=tmp_path / "c")


def test_small_corpus_warns_about_its_vocabulary(text_file: Path, tmp_path: Path) -> None:
    prepared = prepare(data_config(text_file, "bpe-8192"), cache_dir=tmp_path / "c")
    assert prepared.vocab_size < 1000
    (warning,) = prepared.warnings
    assert f"the vocabulary has {prepared.vocab_size}" in warning
    assert prepare(data_config(text_file, "bpe-8192"), cache_dir=tmp_path / "c").warnings == (warning,)


@pytest.mark.parametrize(
    ("name", "words"),
    [("bpe-10", "258"), ("bpe-", "choices"), ("gpt-2", "did you mean 'gpt2'"), ("", "choices"), ("bpe-9999999", "258")],
)
def test_unknown_tokenizer_is_refused(name: str, words: str, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.tokenizer") as caught:
        prepare(data_config(text_file, name), cache_dir=tmp_path / "c")
    assert words in caught.value.line()


def test_gpt2_shares_its_tokens_with_tiktoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data("tiktoken")))
    path = shared_data("tinyshakespeare.txt")
    prepared = prepare(data_config(path, "gpt2"), cache_dir=tmp_path / "c")
    joined = prepared.tokenizer().decode(all_tokens(prepared, "train")[1:])
    assert path.read_text().startswith(joined)
    assert all_tokens(prepared, "train").tolist() == [50256, *tiktoken.get_encoding("gpt2").encode_ordinary(joined)]


def test_synthetic_entropy_is_the_closed_form(tmp_path: Path) -> None:
    prepared = prepare(data_config("synthetic", synthetic_tokens=400_000), cache_dir=tmp_path / "c")
    assert (prepared.n_train_tokens, prepared.n_val_tokens) == (380_000, 20_000)
    tokens = all_tokens(prepared, "train")
    counts = np.zeros((257, 257))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    rows = counts.sum(1, keepdims=True)
    used = counts > 0
    conditional = -(counts[used] * np.log((counts / np.maximum(rows, 1))[used])).sum() / counts.sum()
    assert conditional == pytest.approx(ENTROPY_RATE_NATS, abs=0.005)
    frequency = np.bincount(tokens, minlength=257)
    assert frequency[256] == 0
    assert frequency[:256].min() > 1000  # 1,484 each when equally frequent
    assert used.sum(1).max() == 4


def test_preview_shows_documents(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(msgspec.json.encode({"text": f"document {i}"}).decode() + "\n" for i in range(300)))
    prepared = prepare(data_config(path), cache_dir=tmp_path / "c")
    previews = preview(prepared, 3)
    assert len(previews) == 3
    for each in previews:
        assert each.text.startswith("document ")
        assert "".join(each.decoded) == each.text
        assert len(each.tokens) == len(each.decoded)


def test_cache_root_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "env"))
    assert cache_root(tmp_path / "argument") == tmp_path / "argument"
    assert cache_root() == tmp_path / "env"
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "gpuworkbench"


def test_absolute_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_source("stdlib") == "stdlib"
    assert absolute_source("sub/text.txt") == str(tmp_path / "sub" / "text.txt")
    assert absolute_source("/a/../b") == "/b"


def test_eval_tokens_that_divide() -> None:
    config = eval_config(tokens=1024, batch_size=4, seq_len=64)
    assert check_eval_tokens(config, 1025) == (4, None)
    n_batches, warning = check_eval_tokens(config, 1024)
    assert n_batches == 3
    assert warning is not None
    assert "768" in warning
    assert "1024" in warning


def test_eval_tokens_that_do_not_divide_name_the_nearest() -> None:
    for tokens, hint in ((1000, "set eval.tokens to 768 or 1024"), (100, "set eval.tokens to 256"),
                         (128, "set eval.micro_batch_size to 2, or eval.tokens to 256")):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"eval\.tokens = {tokens} is not a multiple of 4 .* = 256") as caught:
            check_eval_tokens(eval_config(tokens=tokens, batch_size=4, seq_len=64), 10**6)
        assert caught.value.hint == hint


def test_eval_without_a_single_batch() -> None:
    config = eval_config(tokens=256, batch_size=4, seq_len=64)
    assert check_eval_tokens(config, 257) == (1, None)
    with pytest.raises(DataError, match=r"has 256 tokens.*needs 257"):
        check_eval_tokens(config, 256)
    assert check_eval_tokens(eval_config(tokens=100, batch_size=4, seq_len=64, interval_steps=0), 0) == (0, None)
