"""The trainer's side of the log: envelope, torn lines, full disks, threads."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gpuworkbench.errors import RunError
from gpuworkbench.events import schema, writer
from gpuworkbench.events.codec import encode
from gpuworkbench.events.reader import read_all
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.io import Files
from tests.fixtures.event_logs import LogBuilder


class FullDisk(Files):
    """Takes `room` bytes, then refuses; a write that half fits is taken half."""

    def __init__(self, room: int | None = None) -> None:
        self.room = room
        self.fsync_error: int | None = None
        self.n_fsyncs = 0
        self.n_writes = 0

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self.n_writes += 1
        if self.room is None:
            return super().write(fd, data)
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(fd, bytes(data)[: self.room])
        self.room -= written
        return written

    def fsync(self, fd: int) -> None:
        self.n_fsyncs += 1
        if self.fsync_error is not None:
            raise OSError(self.fsync_error, os.strerror(self.fsync_error))
        super().fsync(fd)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def warn(out: EventWriter, step: int, message: str = "m") -> schema.Warning:
    return out.emit(schema.Warning, step, code="c", message=message)


def test_the_envelope_is_filled_in(log: Path) -> None:
    out = EventWriter(log, 3, unix_clock=lambda: 1000.5, mono_clock=lambda: 7.25)
    first, second = warn(out, 10), warn(out, 11)
    out.close()
    assert (first.v, first.seq, first.time_unix_s, first.mono_s, first.attempt, first.step) == (
        1,
        0,
        1000.5,
        7.25,
        3,
        10,
    )
    assert second.seq == 1
    assert read_all(log) == [first, second]


def test_one_write_a_line(log: Path) -> None:
    files = FullDisk()
    out = EventWriter(log, 1, files)
    for step in range(5):
        warn(out, step)
    assert files.n_writes == 5


def test_the_returned_event_is_what_readers_see(log: Path) -> None:
    out = EventWriter(log, 1)
    event = out.emit(schema.Eval, 1, split="val", loss=math.nan, perplexity=np.float64(math.inf), tokens=np.int64(5),
                     duration_s=np.float32(0.5))  # fmt: skip
    assert event.loss is None
    assert event.nonfinite == ("loss", "perplexity")
    assert event.tokens == 5
    assert read_all(log) == [event]


def test_seq_goes_on_after_the_last_complete_event(log: Path) -> None:
    out = EventWriter(log, 1)
    for step in range(3):
        warn(out, step)
    out.close()
    with log.open("ab") as stream:
        stream.write(b'{"type":"of_the_future","v":9,"seq":41}\n' + b"not json\n")
    assert warn(EventWriter(log, 2), 3).seq == 42


def test_a_torn_last_line_is_ended_and_skipped(log: Path) -> None:
    complete = LogBuilder().start().step(1)
    whole = b"".join(encode(event) for event in complete.events)
    torn = encode(LogBuilder().step(2).events[0])
    for cut in (1, len(torn) // 2, len(torn) - 2):
        log.write_bytes(whole + torn[:cut])
        event = warn(EventWriter(log, 2), 2)
        assert event.seq == 2
        assert log.read_bytes() == whole + torn[:cut] + b"\n" + encode(event)
        assert read_all(log) == [*complete.events, event]


def test_a_line_that_lacks_only_its_newline_counts(log: Path) -> None:
    builder = LogBuilder().start().step(1)
    builder.write(log)
    log.write_bytes(log.read_bytes()[:-1])
    event = warn(EventWriter(log, 2), 2)
    assert event.seq == 2
    assert read_all(log) == [*builder.events, event]


@pytest.mark.parametrize("room", [0, 1, 50, 130, 131, 200, 333])
def test_a_full_disk_delays_events_but_loses_none(log: Path, room: int) -> None:
    files = FullDisk(room)
    now = [100.0]
    out = EventWriter(log, 1, files, mono_clock=lambda: now[0])
    written = [warn(out, step) for step in range(5)]
    now[0] += 12.0
    files.room = None
    written.append(warn(out, 5))
    found = read_all(log)
    assert found[:-1] == written
    recovered = found[-1]
    assert isinstance(recovered, schema.Warning)
    assert recovered.code == "events_not_written"
    assert recovered.message == (
        "the event log could not be written for 12.0 s (No space left on device); no event was lost"
    )
    assert [event.seq for event in found] == list(range(7))
    assert warn(out, 6).seq == 7  # and the warning comes once
    assert len(read_all(log)) == 8


def test_a_long_outage_is_bounded_gives_up_steps_first_and_counts_them(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_PENDING_BYTES", 20_000)
    files = FullDisk(0)
    out = EventWriter(log, 1, files, mono_clock=lambda: 0.0)
    fields = {"host_rss_bytes": 1}
    for step in range(1000):
        out.emit(schema.Memory, step, **fields)
        if step % 100 == 0:
            warn(out, step)
        assert out._pending_bytes <= 20_000
    files.room = None
    out.emit(schema.Memory, 1000, **fields)
    found = read_all(log)
    warnings = [event for event in found if isinstance(event, schema.Warning)]
    assert [event.step for event in warnings[:-1]] == list(range(0, 1000, 100))
    n_memories = sum(isinstance(event, schema.Memory) for event in found)
    assert n_memories < 300
    assert warnings[-1].message.endswith(f"{1001 - n_memories} events were lost")
    assert found == sorted(found, key=lambda event: event.seq)
    assert isinstance(found[-2], schema.Memory)
    assert found[-2].step == 1000


def test_a_disk_that_is_full_at_the_start_does_not_stop_the_run(log: Path) -> None:
    log.write_bytes(b'{"torn')
    files = FullDisk(0)
    out = EventWriter(log, 2, files)
    event = warn(out, 1)
    files.room = None
    out.close()
    assert log.read_bytes() == b'{"torn\n' + encode(event)


def test_sync_reports_and_never_repeats_a_failed_fsync(log: Path) -> None:
    files = FullDisk()
    out = EventWriter(log, 1, files)
    warn(out, 4)
    assert out.sync()
    files.fsync_error = errno.EIO
    assert not out.sync()
    files.fsync_error = None
    assert not out.sync()
    assert files.n_fsyncs == 2
    last = read_all(log)[-1]
    assert isinstance(last, schema.Warning)
    assert (last.step, last.code) == (4, "events_sync_failed")
    assert "Input/output error" in last.message


def test_sync_is_false_while_lines_wait(log: Path) -> None:
    files = FullDisk(0)
    out = EventWriter(log, 1, files)
    warn(out, 1)
    assert not out.sync()
    files.room = None
    assert out.sync()


def test_two_threads_write_whole_lines_in_order(log: Path) -> None:
    out = EventWriter(log, 1)

    def work(name: str) -> None:
        for step in range(300):
            warn(out, step, name * 200)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [json.loads(line)["seq"] for line in log.read_bytes().splitlines()] == list(range(1200))


def test_a_log_that_is_not_a_regular_file_is_refused(log: Path) -> None:
    os.mkfifo(log)
    with pytest.raises(RunError, match="not a regular file"):
        EventWriter(log, 1)


def test_an_event_costs_microseconds(log: Path) -> None:
    out = EventWriter(log, 1)
    rounds = []
    for _ in range(5):
        start = time.thread_time()
        for step in range(500):
            warn(out, step)
        rounds.append((time.thread_time() - start) / 500)
    assert min(rounds) < 30e-6
