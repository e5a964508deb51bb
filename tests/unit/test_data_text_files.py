"""The user's own text: streamed exactly, split by document or by its end, refused in one line when it is not text."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuworkbench.data import PreparedData, prepare
from gpuworkbench.data.corpora.documents import CHUNK_CHARS, Document, chunked, file_chunks
from gpuworkbench.data.corpora.text_files import open_text
from gpuworkbench.data.split import Splitter
from gpuworkbench.errors import DataError
from tests.fixtures.data_configs import data_config

SENTENCES = "The quick brown fox jumps over the lazy dog.\n" * 40
EOT = "<|endoftext|>"


def decoded(prepared: PreparedData, split: str) -> str:
    tokens = prepared.tokens(split)  # type: ignore[arg-type]
    return prepared.tokenizer().decode(tokens.slice(0, len(tokens)))


def refusal(source: object, tmp_path: Path) -> str:
    """The one line of the refusal, which must come at once and leave nothing prepared behind."""
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        prepare(data_config(source), cache_dir=tmp_path / "cache")
    assert time.perf_counter() - start < 2.0
    assert not [path for path in (tmp_path / "cache").glob("data/*") if path.is_dir()]
    line = caught.value.line()
    assert "\n" not in line
    return line


def test_file_is_read_exactly_and_its_end_held_out(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + SENTENCES.encode())
    prepared = prepare(data_config(path, val_fraction=0.1), cache_dir=tmp_path / "cache")
    train, val = decoded(prepared, "train"), decoded(prepared, "val")
    assert train.startswith(EOT)
    assert val.startswith(EOT)
    assert train.removeprefix(EOT) + val.removeprefix(EOT) == SENTENCES
    assert val.removeprefix(EOT).startswith("The quick")
    assert 0.07 < len(val) / len(SENTENCES) < 0.12
    assert prepared.n_documents == 1


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.text(alphabet="ab é\n", max_size=12), max_size=6),
    fraction=st.floats(0.01, 0.49),
    seed=st.just(0),
)
def test_held_out_end_and_rest_are_the_whole_text(chunks: list[str], fraction: float, seed: int) -> None:
    text = "".join(chunks)
    splitter = Splitter(fraction, seed, by_document=False)
    pieces = [(split, "".join(part)) for split, part in splitter.pieces(Document("d", len(text.encode()), chunks))]
    assert [split for split, _ in pieces] == ["train", "val"]
    assert "".join(part for _, part in pieces) == text


def test_folder_is_sorted_recursive_and_says_what_it_left_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "b").mkdir(parents=True)
    (data / ".hidden").mkdir()
    (data / ".hidden" / "no.txt").write_text("hidden")
    (data / ".no.txt").write_text("hidden")
    (data / "c.txt").write_text("third " * 20)
    (data / "b" / "x.md").write_text("second " * 20)
    (data / "a.jsonl").write_text('{"text": "first", "other": 1}\n\n{"text": "again"}\n')
    (data / "picture.png").write_bytes(b"\x89PNG\0\0")
    (data / "empty.txt").touch()
    (data / "loop").symlink_to(data / "loop")
    (data / "up").symlink_to(tmp_path)
    os.mkfifo(data / "pipe")
    prepared = prepare(data_config(data, val_fraction=0.4), cache_dir=tmp_path / "cache")
    corpus = open_text(data)
    assert [document.group for document in corpus.documents()] == [
        "a.jsonl:1",
        "a.jsonl:3",
        "c.txt",
        "b/x.md",
    ]
    assert prepared.n_documents == 4
    (warning,) = prepared.warnings
    for part in ("1 binary-looking", "1 empty", "1 broken link", "1 that are a named pipe"):
        assert part in warning


def test_many_documents_are_split_whole(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    texts = [f"document {number} " * 5 for number in range(400)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepared = prepare(data_config(path, val_fraction=0.1), cache_dir=tmp_path / "cache")
    train, val = (decoded(prepared, split).split(EOT)[1:] for split in ("train", "val"))
    assert sorted(train + val) == sorted(texts)
    assert 20 <= len(val) <= 60  # 40 expected, standard deviation 6
    other = prepare(data_config(path, val_fraction=0.1, seed=1), cache_dir=tmp_path / "cache")
    assert decoded(other, "val").split(EOT)[1:] != val


@pytest.mark.parametrize(("unit", "count"), [("", 0), ("a", CHUNK_CHARS - 1), ("é", CHUNK_CHARS)])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf0\x9f\x98"])
def test_byte_that_is_not_utf8_is_named(unit: str, count: int, bad: bytes, tmp_path: Path) -> None:
    prefix = unit.encode() * count
    path = tmp_path / "latin.txt"
    path.write_bytes(prefix + bad)
    assert f"is not UTF-8 at byte offset {len(prefix)}" in refusal(path, tmp_path)


def test_file_in_a_folder_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "good.txt").write_text(SENTENCES)
    (tmp_path / "data" / "latin.txt").write_bytes(b"caf\xe9 au lait")
    line = refusal(tmp_path / "data", tmp_path)
    assert "latin.txt" in line
    assert "offset 3" in line


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "malformed"),
        ("[1]", "Expected `object`"),
        ('{"txt": "a"}', "missing required field `text`"),
        ('{"text": 3}', "Expected `str`"),
        ('{"text": "a"', "truncated"),
        ('{"text": "\\ud800 and on"}', "surrogate"),
        ('{"a": ' + "[" * 200_000, "recursion"),
    ],
    ids=range(7),
)
def test_bad_json_line_is_named(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "good"}\n\n' + line + "\n")
    message = refusal(path, tmp_path)
    assert f"{path} line 3:" in message
    assert reason.lower() in message.lower()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text(alphabet='{}[]":,\\ntextu0129 \n', max_size=200).map(str.encode))
def test_hostile_jsonl_is_read_or_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(content)
    try:
        texts = ["".join(document.chunks) for document in open_text(path).documents()]
    except DataError:
        return
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    assert texts == [json.loads(line)["text"] for line in lines]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.txt"
    path.write_bytes(content)
    try:
        text = "".join(file_chunks(path))
    except DataError:
        return
    assert text.encode() == content.removeprefix(b"\xef\xbb\xbf")


@pytest.mark.parametrize("line", ["é\n", "word ", "x" * 7 + "\n\n", "\t indented\n"])
def test_chunks_join_to_the_text(line: str, tmp_path: Path) -> None:
    text = line * (3 * CHUNK_CHARS // len(line))
    path = tmp_path / "long.txt"
    path.write_text(text)
    for chunks in (list(chunked(text)), list(file_chunks(path))):
        assert "".join(chunks) == text
        assert max(map(len, chunks)) <= CHUNK_CHARS
        assert len(chunks) <= 5


def test_no_more_than_a_chunk_waits_however_long_the_lines_are(tmp_path: Path) -> None:
    path = tmp_path / "long_lines.txt"
    path.write_text(("x" * (CHUNK_CHARS * 9 // 8) + "\n") * 16)
    chunks = file_chunks(path)
    waiting = [len(chunks.gi_frame.f_locals["carry"]) for _ in chunks]  # type: ignore[attr-defined]
    assert max(waiting) <= 2 * CHUNK_CHARS
    assert list(file_chunks(path)) == list(chunked(path.read_text()))


def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.bin")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "image").write_bytes(b"abc\0def")
    assert "a named pipe" in refusal(tmp_path / "pipe", tmp_path)
    assert "a named pipe" in refusal(tmp_path / "pipe.bin", tmp_path)
    assert "a device" in refusal("/dev/zero", tmp_path)
    assert "symbolic links" in refusal(tmp_path / "loop", tmp_path)
    assert "is empty" in refusal(tmp_path / "empty", tmp_path)
    assert "no text files" in refusal(tmp_path / "nothing", tmp_path)
    assert "looks binary (NUL byte at offset 3)" in refusal(tmp_path / "image", tmp_path)
    assert "null" in refusal("a\0b", tmp_path)
    assert "no such file" in refusal("/" + "a" * 5000, tmp_path)
    assert "no such file" in refusal(tmp_path / "absent\x1b[31m", tmp_path)
    assert "did you mean 'stdlib'" in refusal("stdlb", tmp_path)
    assert "data.source is empty" in refusal("", tmp_path)


@pytest.mark.parametrize("name", ["book.txt", "shard_train_0.bin", "folder"])
def test_a_name_that_is_not_utf8_is_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"\udcff\x1b{name}"
    if name == "folder":
        path.mkdir()
        (path / "a.txt").write_text(SENTENCES)
    else:
        path.write_text(SENTENCES)
    assert r"\xff" in refusal(path, tmp_path)


def test_a_file_in_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("\udcff.txt", "line\nend.txt", "\x1b[31m.jsonl"):
        is_text = name.endswith("txt")
        (folder / name).write_text(SENTENCES if is_text else json.dumps({"text": SENTENCES}))
    prepared = prepare(data_config(folder), cache_dir=tmp_path / "cache")
    assert prepared.n_documents == 3
    (folder / "\udcff_train.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"xff_train\.bin is not UTF-8"):
        prepare(data_config(folder), cache_dir=tmp_path / "cache")


def test_blank_jsonl_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "blank.jsonl"
    path.write_text('\n \n{"text": ""}\n')
    assert "holds no text" in refusal(path, tmp_path)


def test_forbidden_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as root, for whom permissions do not count: the refusal of scandir is played."""
    (tmp_path / "data" / "closed").mkdir(parents=True)
    (tmp_path / "data" / "a.txt").write_text(SENTENCES)
    real = os.scandir

    def scandir(path: object) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    line = refusal(tmp_path / "data", tmp_path)
    assert "closed" in line
    assert "Permission denied" in line
