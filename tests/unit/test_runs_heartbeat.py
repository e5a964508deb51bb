"""The heartbeat: beats without progress, progress, the last beat, and malformed files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gpuworkbench.runs.heartbeat import PHASE_EXITED, HeartbeatWriter, boot_id, read_heartbeat


def wait_for(condition: object, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the heartbeat did not come"
        time.sleep(0.005)


def test_a_living_thread_is_not_progress(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.json"
    writer = HeartbeatWriter(path, interval_s=0.02)
    writer.start()
    first = read_heartbeat(path)
    assert first is not None
    assert (first.pid, first.last_step, first.last_progress_mono_s) == (os.getpid(), None, None)
    assert first.boot_id == boot_id()
    wait_for(lambda: read_heartbeat(path).mono_s > first.mono_s)
    writer.progress(3)
    writer.set_phase("full")
    wait_for(lambda: read_heartbeat(path).last_step == 3)
    progressed = read_heartbeat(path)
    wait_for(lambda: read_heartbeat(path).mono_s > progressed.mono_s)
    later = read_heartbeat(path)
    assert later.last_progress_mono_s == progressed.last_progress_mono_s
    assert abs(later.last_progress_unix_s - time.time()) < 5
    writer.stop()
    last = read_heartbeat(path)
    assert (last.phase, last.last_step) == (PHASE_EXITED, 3)
    assert os.listdir(tmp_path) == ["heartbeat.json"]


def test_it_beats_twice_a_second(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.json"
    writer = HeartbeatWriter(path)
    writer.start()
    seen = set()
    deadline = time.monotonic() + 1.7
    while time.monotonic() < deadline:
        seen.add(read_heartbeat(path).mono_s)
        time.sleep(0.02)
    writer.stop()
    assert len(seen) in (3, 4)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"pid": "x"}', b"\xff\xfe", b"[" * 4000, b'{"pid":1' + b" " * 5000 + b"}"]
)
def test_malformed_heartbeats_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "heartbeat.json"
    assert read_heartbeat(path) is None
    path.write_bytes(content)
    assert read_heartbeat(path) is None


def test_a_fifo_or_symlink_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert read_heartbeat(tmp_path / "fifo") is None
    writer = HeartbeatWriter(tmp_path / "real")
    writer.stop()
    assert read_heartbeat(tmp_path / "real") is not None
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_heartbeat(tmp_path / "link") is None
