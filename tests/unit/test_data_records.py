"""Records from JSONL, gzip and parquet: the same documents, the same masks, the same refusals in one line."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuworkbench.config.schema import DataConfig
from gpuworkbench.data import PreparedData, prepare
from gpuworkbench.data.corpora import jsonl
from gpuworkbench.data.corpora.documents import Mark, TextCorpus
from gpuworkbench.data.corpora.records import chat_prompt
from gpuworkbench.data.corpora.sieve import CleanCorpus
from gpuworkbench.data.corpora.text_files import open_text
from gpuworkbench.errors import DataError
from tests.fixtures.data_configs import data_config
from tests.unit.test_data_text_files import SENTENCES

pa = pytest.importorskip("pyarrow", reason="pyarrow (the extra `data`) is not installed")
pq = pytest.importorskip("pyarrow.parquet")

EOT = 256
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "6"},
    {"role": "user", "content": "Thanks."},
]
# (text, scored, an end of text follows), by hand from the format's description
TALK_WRITTEN = [
    ("System: Be brief.\n\nUser: 2 + 2?\n\nAssistant:", False, False),
    (" 4", True, True),
    ("User: And 3 + 3?\n\nAssistant:", False, False),
    (" 6", True, True),
    ("User: Thanks.\n\n", False, False),
]


def exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"document {i} " * 4, "id": i} for i in range(30)],
    "chat": [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}!"}]}
        for i in range(30)
    ],
    "pair": [{"prompt": f"Say {i}.", "completion": f" {i}"} for i in range(30)],
}


def write_jsonl(path: Path, records: list[Any]) -> Path:
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_parquet(path: Path, records: list[Any], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(records), path, **options)
    return path


def write(path: Path, records: list[Any]) -> Path:
    return write_parquet(path, records) if path.suffix == ".parquet" else write_jsonl(path, records)


def documents(path: Path, loss_on: Any = "auto") -> list[list[tuple[str, bool, bool]]]:
    """Each document's chunks with what they are marked as."""
    return marked(open_text(path, loss_on=loss_on))


def marked(corpus: TextCorpus) -> list[list[tuple[str, bool, bool]]]:
    """The same of a corpus."""
    found = []
    for document in corpus.documents():
        chunks = list(document.chunks)
        marks = document.marks or [Mark()] * len(chunks)
        found.append([(chunk, mark.scored, mark.ends) for chunk, mark in zip(chunks, marks, strict=True)])
    return found


def refusal(source: Path, tmp_path: Path) -> str:
    """The one line of the refusal, which must leave nothing prepared behind."""
    with pytest.raises(DataError) as caught:
        prepare(data_config(source), cache_dir=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").glob("data/*") if path.is_dir()]
    line = caught.value.line()
    assert "\n" not in line
    return line


def tokens_of(data: PreparedData, split: Any) -> list[int]:
    tokens = data.tokens(split)
    return tokens.slice(0, len(tokens)).tolist()


def scored_text(data: PreparedData, split: Any) -> tuple[str, str]:
    """What is scored and what is not, byte-level, ends of text shown as a bar."""
    tokens = data.tokens(split)
    scored, ids = tokens.scored(0, len(tokens)), tokens.slice(0, len(tokens))
    assert scored is not None
    shown = ["|" if token == EOT else chr(token) for token in ids.tolist()]
    return tuple("".join(c for c, s in zip(shown, scored, strict=True) if bool(s) is side) for side in (True, False))  # type: ignore


@pytest.mark.parametrize("name", ["d.jsonl", "d.NDJSON", "d.jsonl.gz", "d.parquet"])
def test_every_layout_reads_the_same_from_every_format(name: str, tmp_path: Path) -> None:
    assert documents(write(tmp_path / f"chat-{name}", [{"messages": TALK}])) == [TALK_WRITTEN]
    assert documents(write(tmp_path / f"all-{name}", [{"messages": TALK}]), "all") == [
        [(text, True, ends) for text, _, ends in TALK_WRITTEN]
    ]
    pair = write(tmp_path / f"pair-{name}", [{"prompt": "Q: é\n", "completion": "A"}, {"prompt": "", "completion": ""}])
    assert documents(pair, "answers") == [
        [("Q: é\n", False, False), ("A", True, True)],
        [("", False, False), ("", True, True)],
    ]
    text = write(tmp_path / f"text-{name}", [{"text": "plain\r\n", "n": 1}, {"text": "ü", "n": 2}])
    assert documents(text) == [[("plain\r\n", True, False)], [("ü", True, False)]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_and_masks_are_the_same_from_every_format(layout: str, tmp_path: Path) -> None:
    """All but which documents are held out, which the file's name decides."""
    found = set()
    for suffix in ("jsonl", "jsonl.gz", "parquet"):
        (tmp_path / suffix).mkdir()
        path = write(tmp_path / suffix / f"data.{suffix}", LAYOUTS[layout])
        data = prepare(data_config(path, loss_on="auto", val_fraction=0.1), cache_dir=tmp_path / "cache")
        ids = [*tokens_of(data, "train"), *tokens_of(data, "val")]
        found.add((tuple(sorted(ids)), data.tokens("train").count_scored() + data.tokens("val").count_scored()))
        assert data.n_documents == 30
        assert data.tokens("train").has_mask == (layout != "text")
    assert len(found) == 1


def test_only_answers_and_their_ends_are_scored(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", LAYOUTS["chat"])
    data = prepare(data_config(path, val_fraction=0.1), cache_dir=tmp_path / "cache")
    answers, rest = scored_text(data, "train")
    val_answers, _ = scored_text(data, "val")
    assert answers.count("|") == answers.count("!") == 27
    assert val_answers.count("|") == 3
    assert rest.count("|User: ") == rest.count("?\n\nAssistant:") == 27
    everything = prepare(data_config(path, val_fraction=0.1, loss_on="all"), cache_dir=tmp_path / "cache")
    assert not everything.tokens("train").has_mask
    assert everything.n_train_tokens == data.n_train_tokens
    assert everything.sha256 != data.sha256


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_question_is_asked_with_the_tokens_of_training(system: str, tmp_path: Path) -> None:
    talk = [{"role": "system", "content": system}] if system else []
    talk += exchange("Сколько будет 2 + 2?\n", "4")
    source = write(tmp_path / "talk.jsonl", [{"messages": talk}] * 40)
    data = prepare(data_config(source, "bpe-300", seq_len=4), cache_dir=tmp_path / "cache")
    tokenizer = data.tokenizer()
    prompt = [tokenizer.eot_id, *tokenizer.encode(chat_prompt("Сколько будет 2 + 2?\n", system))]
    answer = [*tokenizer.encode(" 4"), tokenizer.eot_id]
    tokens = tokens_of(data, "train")
    assert tokens[: len(prompt) + len(answer)] == prompt + answer


def test_a_long_answer_is_scored_to_its_end(tmp_path: Path) -> None:
    answer = SENTENCES * 400
    path = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "Go.", "completion": answer}])
    (document,) = marked(CleanCorpus(open_text(path), DataConfig()))
    assert len(document) > 3
    assert [(scored, ends) for _, scored, ends in document] == [
        (False, False),
        *[(True, False)] * (len(document) - 2),
        (True, True),
    ]
    assert "".join(text for text, *_ in document[1:]) == answer


def test_structure_is_preferred_and_null_is_absent(tmp_path: Path) -> None:
    """Published sets often carry the rendered text beside what it was rendered from."""
    record = {"text": "rendered", "prompt": "p", "completion": "c", "messages": None}
    assert documents(write_jsonl(tmp_path / "a.jsonl", [record])) == [[("p", False, False), ("c", True, True)]]


MESSAGE = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"messages": []}, "length >= 1"),
        ({"messages": "hello"}, "Expected `array`, got `str`"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "message 1 has role 'tool', not one of system, user, assistant",
        ),
        ({"messages": [MESSAGE, {"role": "assistant"}]}, "missing required field `content` - at `$.messages[1]`"),
        ({"messages": [{"role": "assistant", "content": None}]}, "Expected `str`, got `null`"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "Expected `str`, got `array`"),
        ({"messages": [{"role": 3, "content": "x"}]}, "Expected `str`, got `int`"),
        ({"text": "plain"}, "is text, line 1 is a conversation: one kind a file"),
        ({"prompt": "p", "completion": "c"}, "is a prompt with its completion, line 1 is a conversation"),
        ({"prompt": "p"}, "missing required field `messages`"),
        ({"messages": None}, "Expected `array`, got `null`"),
        ([], "Expected `object`"),
        ("messages", "Expected `object`"),
        ({}, "missing required field `messages`"),
    ],
)
def test_bad_record_is_refused_with_its_line(second: Any, reason: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", [{"messages": TALK}, second])
    line = refusal(path, tmp_path)
    assert f"{path} line 2" in line
    assert reason in line


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"instruction": "a", "output": "b"}\n', """line 1: Object has none of the fields "text", "messages", or"""),
        (b'{"instruction": "a", "output": "b"}\n', "but 'instruction', 'output'"),
        (b'{"prompt": "a"}\n', "but 'prompt'"),
        (b"{}\n", "line 1: Object has none of the fields"),
        (b'\xef\xbb\xbf{"text": 1}\n', "line 1: Expected `str`"),
        (b'{"text": "a"}\n{"text": "caf\xe9"}\n', "is not UTF-8 at byte offset 27"),
        (b'{"text": "a\0b"}\n', "line 1: JSON is malformed"),
        (b'{"text": "\\ud83d"}\n', "line 1: "),
        (b'{"messages": ' + b"[" * 200_000 + b"\n", "line 1: "),
        (b"\xef\xbb\xbf", "holds no text"),
        (b"\xef\xbb\xbf\n", "holds no text"),
        ('{"text": "a"}'.encode("utf-16"), "is not UTF-8 at byte offset 0"),
        (b'[{"text": "a"}]', "line 1: Expected `object`"),
        (b'{\n"text": "a"\n}\n', "line 1: "),
    ],
    ids=range(14),
)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_hostile_bytes_are_refused_with_their_place(content: bytes, reason: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"hostile.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    line = refusal(path, tmp_path)
    assert reason in line
    assert str(path) in line


def test_bom_crlf_and_blank_lines_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\n"}\r\n\r\n  \r\n{"text": "b"}')
    assert documents(path) == [[("a\r\n", True, False)], [("b", True, False)]]


def test_a_line_beyond_the_limit_is_refused_and_one_at_the_limit_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "long.jsonl"
    path.write_text('{"text": "' + "x" * (1000 - 12) + '"}')
    assert len(documents(path)) == 1
    path.write_text('{"text": "a"}\n{"text": "' + "x" * (1001 - 12) + '"}')
    assert "line 2 is longer than 1000 bytes" in refusal(path, tmp_path)


def test_a_line_of_100_mb_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    path.write_bytes(b'{"text": "' + b"word " * 20_000_000 + b'"}\n')
    (document,) = open_text(path).documents()
    assert document.n_bytes == sum(map(len, document.chunks)) == 100_000_000


HEADING = {"user": "User:", "assistant": "Assistant:", "system": "System:"}
BLANK_LINE = "\n\n"
MESSAGES = st.fixed_dictionaries({"role": st.sampled_from([*HEADING, "x"]), "content": st.text(max_size=8)})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(talks=st.lists(st.lists(MESSAGES, max_size=4), min_size=1, max_size=4))
def test_any_conversation_is_refused_or_keeps_every_word(talks: list[list[dict[str, str]]], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "any.jsonl", [{"messages": talk} for talk in talks])
    if any(not talk or any(message["role"] == "x" for message in talk) for talk in talks):
        with pytest.raises(DataError, match=r"any\.jsonl line \d"):
            documents(path)
        return
    for talk, document in zip(talks, documents(path), strict=True):
        answers = [message["content"] for message in talk if message["role"] == "assistant"]
        assert [text for text, scored, _ in document if scored] == [f" {answer}" for answer in answers]
        after = {"assistant": ""}
        texts = [f"{HEADING[m['role']]} {m['content']}{after.get(m['role'], BLANK_LINE)}" for m in talk]
        assert "".join(text for text, *_ in document) == "".join(texts)


# gzip


def test_compressed_text_is_read_as_text(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a" / "text.txt", tmp_path / "b" / "text.txt.gz"
    for path in (plain, packed):
        path.parent.mkdir()
    plain.write_text(SENTENCES)
    packed.write_bytes(gzip.compress(SENTENCES[:1000].encode()) + gzip.compress(SENTENCES[1000:].encode()))
    first, second = (prepare(data_config(path), cache_dir=tmp_path / "cache") for path in (plain, packed))
    assert first.sha256 == second.sha256


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(SENTENCES.encode())[:-12], "ended before the end"),
        (gzip.compress(SENTENCES.encode())[:-8] + b"\0" * 8, "CRC"),
        (b"not gzip at all", "Not a gzipped file"),
        (gzip.compress(SENTENCES.encode())[:20] + b"\xff" * 40, "cannot read data"),
        (gzip.compress(b"caf\xe9 au lait"), "not UTF-8 at byte offset 3 of its decompressed content"),
        (gzip.compress(b"a\0b"), "looks binary (NUL byte at offset 1)"),
        (gzip.compress(b""), "holds no text"),
    ],
    ids=range(7),
)
def test_damaged_gzip_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    for name in ("d.txt.gz", "d.jsonl.gz") if b"lait" not in content and reason[0] != "l" else ("d.txt.gz",):
        path = tmp_path / name
        path.write_bytes(content)
        line = refusal(path, tmp_path)
        assert reason in line
        assert str(path) in line


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x1f\x8b", "gzip"),
        (b"PAR1", "parquet"),
        (b"BZh91", "bzip2"),
        (b"PK\x03\x04", "zip"),
    ],
)
def test_other_formats_are_called_by_their_name(magic: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(magic + b"\x00\xff" * 40)
    assert f"looks like a {name} file" in refusal(path, tmp_path)


# parquet


def not_utf8() -> Any:
    """A string column of one value, whose bytes are not UTF-8: no check stands in the way of such a file."""
    offsets = pa.array([0, 2], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"a\xff")])


def test_row_groups_are_read_one_by_one_and_rows_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", LAYOUTS["text"], row_group_size=7)
    corpus = open_text(path)
    assert [document.group for document in corpus.documents()] == [f"d.parquet:{i}" for i in range(1, 31)]
    assert corpus.count_groups() == 30
    assert corpus.n_bytes > 0


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_every_kind_of_string_column_is_read(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": pa.array(["é", "b", "b"], pa.string()).cast(kind)}), path)
    assert [text for ((text, *_),) in documents(path)] == ["é", "b", "b"]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (lambda: pa.table({"text": [1, 2]}), "column 'text' is int64, not string"),
        (lambda: pa.table({"text": [b"a", b"b"]}), "column 'text' is binary, not string"),
        (lambda: pa.table({"text": ["a", None]}), "row 2: Expected `str`, got `null`"),
        (lambda: pa.table({"body": ["a"], "title": ["b"]}), "but 'body', 'title'"),
        (lambda: pa.table({"prompt": ["a"]}), "but 'prompt'"),
        (lambda: pa.table({"messages": ["a"]}), "column 'messages' is string, not a list of structs"),
        (lambda: pa.table({"messages": [[{"role": "user"}]]}), "not a list of structs with strings role and content"),
        (lambda: pa.table({"messages": [[{"role": "tool", "content": "x"}]]}), "row 1: message 1 has role 'tool'"),
        (lambda: pa.table({"messages": [[MESSAGE], None]}), "row 2: Expected `array`, got `null`"),
        (lambda: pa.table({"messages": [[MESSAGE], []]}), "row 2: Expected `array` of length >= 1"),
        (lambda: pa.table({"text": pa.array([], pa.string())}), "holds no text"),
        (lambda: pa.table({}), "but no columns"),
        (lambda: pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), "2 columns of the name 'text'"),
        (
            lambda: pa.table({"text": not_utf8()}),
            "rows 1 to 1: a string is not UTF-8",
        ),
    ],
    ids=range(14),
)  # fmt: skip
def test_wrong_table_is_refused_in_one_line(table: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(table(), path)
    line = refusal(path, tmp_path)
    assert reason in line
    assert str(path) in line


@pytest.mark.parametrize("cut", [1, 8, 100, -1, -8, -60])
def test_truncated_parquet_is_refused_in_one_line(cut: int, tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "whole.parquet", LAYOUTS["text"]).read_bytes()
    path = tmp_path / "cut.parquet"
    path.write_bytes(whole[:cut])
    assert f"cannot read parquet file {path}" in refusal(path, tmp_path)


@pytest.mark.parametrize("place", range(4, 400, 13))
def test_damaged_parquet_is_read_or_refused(place: int, tmp_path: Path) -> None:
    content = bytearray(write_parquet(tmp_path / "whole.parquet", LAYOUTS["pair"]).read_bytes())
    content[place % len(content)] ^= 0xFF
    path = tmp_path / "damaged.parquet"
    path.write_bytes(content)
    try:
        documents(path)
        line = ""
    except DataError as error:
        line = error.line()
    assert line == "" or str(path) in line
    assert "\n" not in line


def test_without_pyarrow_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "d.parquet", LAYOUTS["text"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    line = refusal(path, tmp_path)
    assert "needs pyarrow" in line
    assert "pip install 'gpuworkbench[data]'" in line


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.txt.gz", "d.parquet"])
def test_a_file_that_may_not_be_read_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as root, for whom permissions do not count: the refusal of open is played."""
    path = write(tmp_path / name, LAYOUTS["text"])
    real = os.open

    def forbidding(target: Any, *arguments: Any, **options: Any) -> int:
        if str(target) == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(target, *arguments, **options)

    monkeypatch.setattr(os, "open", forbidding)
    assert f"cannot read data at {path}: Permission denied" in refusal(path, tmp_path)


def test_a_parquet_name_that_is_a_pipe_or_a_device_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.parquet")
    (tmp_path / "z.parquet").symlink_to("/dev/zero")
    (tmp_path / "z.jsonl.gz").symlink_to("/dev/zero")
    assert "a named pipe" in refusal(tmp_path / "d.parquet", tmp_path)
    assert "a device" in refusal(tmp_path / "z.parquet", tmp_path)
    assert "a device" in refusal(tmp_path / "z.jsonl.gz", tmp_path)


# folders


def test_a_folder_mixes_text_jsonl_gzip_and_parquet(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "a.txt").write_text(SENTENCES)
    (data / "b.txt.gz").write_bytes(gzip.compress(SENTENCES.encode()))
    (data / "c.tar.gz").write_bytes(gzip.compress(b"\0" * 100))
    write_jsonl(data / "d.jsonl", LAYOUTS["text"][:2])
    write_jsonl(data / "sub" / "e.jsonl.gz", LAYOUTS["chat"][:2])
    write_parquet(data / "sub" / "f.parquet", LAYOUTS["pair"][:2])
    (data / "g.parquet").touch()
    corpus = open_text(data)
    assert [(document.group, document.marks is not None) for document in corpus.documents()] == [
        ("a.txt", False),
        ("b.txt.gz", False),
        ("d.jsonl:1", False),
        ("d.jsonl:2", False),
        (os.path.join("sub", "e.jsonl.gz:1"), True),
        (os.path.join("sub", "e.jsonl.gz:2"), True),
        (os.path.join("sub", "f.parquet:1"), True),
        (os.path.join("sub", "f.parquet:2"), True),
    ]
    assert corpus.count_groups() == 8 + 2  # the line after a file's last line end counts
    assert corpus.warnings == (f"{data}: left out 1 binary-looking file(s), 1 empty file(s)",)
    prepared = prepare(data_config(data, val_fraction=0.3), cache_dir=tmp_path / "cache")
    assert prepared.n_documents == 8
    assert prepared.tokens("train").has_mask
    damaged = data / "sub" / "f.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert f"cannot read parquet file {damaged}" in refusal(data, tmp_path / "again")


@pytest.mark.parametrize("source", ["stdlib", "synthetic", "a.txt", "a.jsonl"])
def test_answers_are_asked_of_what_has_none(source: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SENTENCES)
    write_jsonl(tmp_path / "a.jsonl", LAYOUTS["text"])
    path = source if "." not in source else tmp_path / source
    with pytest.raises(DataError, match=r"data\.loss_on is answers"):
        prepare(data_config(path, loss_on="answers"), cache_dir=tmp_path / "cache")


def test_questions_alone_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [{"messages": [MESSAGE]}] * 30)
    with pytest.raises(DataError, match="tokens is scored") as caught:
        prepare(data_config(path), cache_dir=tmp_path / "cache")
    assert "data.loss_on=all" in caught.value.hint
    assert prepare(data_config(path, loss_on="all"), cache_dir=tmp_path / "cache").n_documents == 30


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", LAYOUTS["text"])
    info = path.stat()
    read = jsonl.document_of

    def changing(*arguments: Any) -> Any:
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        return read(*arguments)

    monkeypatch.setattr(jsonl, "document_of", changing)
    assert "changed while it was read" in refusal(path, tmp_path)


def test_an_edit_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", LAYOUTS["text"])
    info = path.stat()
    before = prepare(data_config(path), cache_dir=tmp_path / "cache")
    path.write_bytes(path.read_bytes().replace(b"document", b"DOCUMENT"))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (info.st_size, info.st_mtime_ns)
    assert prepare(data_config(path), cache_dir=tmp_path / "cache").sha256 != before.sha256
