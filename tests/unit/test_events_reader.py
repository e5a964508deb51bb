"""Following a log: partial lines, chunks, truncation, and things that are not logs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.errors import RunError
from gpuworkbench.events import log_file, reader
from gpuworkbench.events.codec import encode
from gpuworkbench.events.log_file import last_seq, lines_backward, tail_events
from gpuworkbench.events.reader import EventReader, read_all
from tests.fixtures.event_logs import LogBuilder, random_history


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_a_log_that_is_not_there_yet_is_empty(log: Path) -> None:
    follower = EventReader(log)
    assert follower.poll() == []
    builder = LogBuilder().start()
    builder.write(log)
    assert follower.poll() == builder.events
    assert follower.replacements == 0


def test_a_partial_last_line_waits_for_its_rest(log: Path) -> None:
    builder = LogBuilder().start().step(1)
    lines = [encode(event) for event in builder.events]
    follower = EventReader(log)
    with log.open("ab", buffering=0) as stream:
        stream.write(lines[0] + lines[1][:10])
        assert follower.poll() == builder.events[:1]
        assert follower.poll() == []
        assert follower.offset == len(lines[0])
        stream.write(lines[1][10:-1])
        assert follower.poll() == []
        stream.write(b"\n")
        assert follower.poll() == builder.events[1:]
    assert follower.offset == len(lines[0]) + len(lines[1])


@pytest.mark.parametrize("max_bytes", [1, 7, 100, 390, 10_000])
def test_chunks_of_any_size_give_the_same_events(log: Path, max_bytes: int) -> None:
    builder = LogBuilder().start()
    for step in range(1, 30):
        builder.step(step)
    builder.write(log)
    follower = EventReader(log)
    found = []
    while lines := follower.poll_lines(max_bytes):
        assert len(lines) <= max_bytes + 500
        found.append(lines)
    assert b"".join(found) == log.read_bytes()
    assert follower.at_end()


def test_an_overlong_line_is_skipped_in_bounded_memory(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(log_file, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(log_file, "BACKWARD_CHUNK_BYTES", 128)
    before, after = LogBuilder().start().events[0], LogBuilder().step(1).events[0]
    log.write_bytes(encode(before) + b"x" * 50_000 + b"\n" + encode(after))
    follower = EventReader(log)
    found = []
    while not follower.at_end() or not found:
        found += follower.poll(128)
    found += follower.poll(128)
    assert found == [before, after]
    assert tail_events(log, 5) == [before, after]


@pytest.mark.parametrize("replace", [True, False])
def test_truncation_and_replacement_are_noticed(log: Path, replace: bool) -> None:
    old = LogBuilder().start().step(1).step(2)
    new = LogBuilder().start(preset="other")
    old.write(log)
    follower = EventReader(log)
    assert len(follower.poll()) == 3
    if replace:
        new.write(log.with_name("new"))
        os.rename(log.with_name("new"), log)
    else:
        new.write(log)
    assert follower.poll() == new.events
    assert follower.replacements == 1


def test_a_deleted_log_is_read_to_its_end(log: Path) -> None:
    builder = LogBuilder().start().step(1)
    builder.write(log)
    follower = EventReader(log)
    assert follower.poll(1) == builder.events[:1]
    log.unlink()
    assert follower.poll() == builder.events[1:]
    assert follower.poll() == []


def test_special_files_are_refused_at_once(log: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to_device").symlink_to("/dev/zero")
    (tmp_path / "to_fifo").symlink_to(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "to_device", "to_fifo", "loop", "folder", "nul\0byte"):
        for read in (read_all, last_seq, lambda path: tail_events(path, 3)):
            with pytest.raises(RunError) as caught:
                read(tmp_path / name)
            assert "\n" not in caught.value.line()


def test_tail_reads_the_end_only(log: Path) -> None:
    events = random_history(seed=3, n=3000)
    builder = LogBuilder()
    builder.events = events
    builder.write(log)
    for n in (0, 1, 7, 1000, len(events), len(events) + 10):
        assert tail_events(log, n) == (events[-n:] if n else [])
    with log.open("ab") as stream:
        stream.write(b'garbage\n\n{"torn": tr')
    assert tail_events(log, 2) == events[-2:]
    assert last_seq(log) == len(events) - 1
    assert tail_events(log.with_name("nothing"), 2) == []
    assert last_seq(log.with_name("nothing")) == -1


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60).map(lambda raw: raw.replace(b"\x00", b"\n")), chunk=st.integers(1, 9))
def test_lines_backward_are_the_lines_of_split(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, chunk: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "backward"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    patch = pytest.MonkeyPatch()
    patch.setattr(log_file, "BACKWARD_CHUNK_BYTES", chunk)
    try:
        assert list(lines_backward(fd, len(data)))[::-1] == data.split(b"\n")[:-1]
    finally:
        patch.undo()
        os.close(fd)
