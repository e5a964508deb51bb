"""Status from evidence: every status, with real locks, and a clock that is handed in."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.runs.create import create_run
from gpuworkbench.runs.heartbeat import PHASE_EXITED, PHASE_QUEUED
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.status import RunStatus, derive_status
from gpuworkbench.text import safe_text
from tests.unit.run_helpers import answer, beat, end, start_holder, step, tell, write_events

START = {"type": "run_started", "run_id": "run", "max_steps": 90}
NOW = 2_000_000_000.0


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    return create_run(tmp_path, "run", b"", b"[train]\nmax_steps = 100\n")


@pytest.fixture
def holder(run: RunPaths) -> Iterator[subprocess.Popen[str]]:
    process = start_holder(run)
    tell(process)
    assert answer(process) == "won"
    yield process
    end(process, kill=True)


def write_beat(run: RunPaths, pid: int, **fields: Any) -> None:
    run.heartbeat.write_bytes(msgspec.json.encode(beat(pid, now=NOW, **fields)))


def test_running(run: RunPaths, holder: subprocess.Popen[str]) -> None:
    write_beat(run, holder.pid, last_step=7)
    write_events(run, [START, step(5, loss=3.0), step(6, loss=2.5)], end_with=b'{"type":"step","step":7')
    report = derive_status(run, NOW)
    assert (report.status, report.pid, report.step, report.max_steps) == (RunStatus.RUNNING, holder.pid, 7, 100)
    assert (report.last_loss, report.attempt, report.last_event_unix_s) == (2.5, 1, 1000.0)
    assert report.status.is_live


def test_starting_is_running(run: RunPaths, holder: subprocess.Popen[str]) -> None:
    report = derive_status(run, NOW)
    assert (report.status, report.reason, report.step, report.last_loss) == (RunStatus.RUNNING, "starting", None, None)
    write_beat(run, holder.pid, idle_s=None)
    assert derive_status(run, NOW).reason == "starting"
    write_beat(run, holder.pid + 1, age_s=9999.0, idle_s=5.0)  # of the attempt before
    assert derive_status(run, NOW).reason == "starting"


def test_a_hung_loop_is_stalled_although_its_thread_beats(run: RunPaths, holder: subprocess.Popen[str]) -> None:
    write_events(run, [START, step(1, step_time_s=0.1)])
    write_beat(run, holder.pid, idle_s=29.0)
    assert derive_status(run, NOW).status is RunStatus.RUNNING
    write_beat(run, holder.pid, idle_s=31.0)
    report = derive_status(run, NOW)
    assert report.status is RunStatus.STALLED
    assert report.idle_s == pytest.approx(31.0)
    assert "no progress for 31 s" in report.reason


def test_a_stopped_process_is_stalled(run: RunPaths, holder: subprocess.Popen[str]) -> None:
    """SIGSTOP ends the beats too: their age counts."""
    write_beat(run, holder.pid, age_s=40.0, idle_s=0.0)
    assert derive_status(run, NOW).status is RunStatus.STALLED
    write_beat(run, holder.pid, age_s=40.0, idle_s=None)
    assert derive_status(run, NOW).status is RunStatus.STALLED


def test_slow_steps_are_given_twenty_of_them(run: RunPaths, holder: subprocess.Popen[str]) -> None:
    write_events(run, [START, *(step(number, step_time_s=10.0) for number in range(1, 6)), step(6, step_time_s=500.0)])
    write_beat(run, holder.pid, idle_s=199.0)
    assert derive_status(run, NOW).status is RunStatus.RUNNING
    write_beat(run, holder.pid, idle_s=201.0)
    assert derive_status(run, NOW).status is RunStatus.STALLED


def test_the_first_step_of_an_attempt_may_take_long(run: RunPaths, holder: subprocess.Popen[str]) -> None:
    """Compilation and a first validation come before it; the steps of the attempt before do not count."""
    write_events(run, [START, step(1), {"type": "run_resumed", "attempt": 2, "from_step": 1}])
    write_beat(run, holder.pid, idle_s=590.0)
    assert derive_status(run, NOW).status is RunStatus.RUNNING
    write_beat(run, holder.pid, idle_s=610.0)
    assert derive_status(run, NOW).status is RunStatus.STALLED


def test_events_are_a_sign_of_life_too(run: RunPaths, holder: subprocess.Popen[str]) -> None:
    write_beat(run, holder.pid, age_s=60.0)
    write_events(run, [START, step(1, time_unix_s=NOW - 1)])
    assert "no progress for 60 s" in derive_status(run, NOW).reason
    write_events(run, [START, step(2, time_unix_s=NOW - 1, step_time_s=20.0)])
    write_events(run, [START, step(3, time_unix_s=NOW - 1, step_time_s=20.0)])
    assert derive_status(run, NOW).status is RunStatus.RUNNING


def test_paused_and_resumed(run: RunPaths, holder: subprocess.Popen[str]) -> None:
    write_beat(run, holder.pid, idle_s=5000.0)
    write_events(run, [START, step(1), {"type": "paused"}, {"type": "memory"}])
    assert derive_status(run, NOW).status is RunStatus.PAUSED
    write_events(run, [{"type": "resumed"}])
    assert derive_status(run, NOW).status is RunStatus.STALLED


def test_queued(run: RunPaths, holder: subprocess.Popen[str]) -> None:
    write_beat(run, holder.pid, idle_s=None, phase=PHASE_QUEUED)
    assert derive_status(run, NOW).status is RunStatus.QUEUED


def test_a_killed_trainer_is_crashed_with_the_end_of_its_log(run: RunPaths, holder: subprocess.Popen[str]) -> None:
    write_beat(run, holder.pid)
    write_events(run, [START, step(3)])
    run.trainer_log.write_bytes(b"loading\nSegmentation \x1b[31mfault\xff\n\n")
    end(holder, kill=True)
    report = derive_status(run, NOW)
    assert report.status is RunStatus.CRASHED
    assert report.pid is None
    assert report.reason == "Segmentation ␛[31mfault\ufffd"
    assert report.log_end == ("loading", report.reason)
    assert (report.step, report.last_loss) == (3, 2.0)


def test_what_a_crash_says_without_a_log(run: RunPaths) -> None:
    write_events(run, [START, step(3)])
    assert "killed, or out of host memory" in derive_status(run, NOW).reason
    write_beat(run, 1, boot_id="another boot")
    assert "restarted" in derive_status(run, NOW).reason
    write_events(run, [{"type": "error", "kind": "io", "message": "disk \x1b full"}])
    assert derive_status(run, NOW).reason == "disk ␛ full"


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("stopped", 75), ("failed", 1), ("nonsense", 9)])
def test_finished(run: RunPaths, status: str, code: int) -> None:
    write_events(
        run, [START, step(100), {"type": "run_finished", "status": status, "exit_code": code, "reason": "why"}]
    )
    write_beat(run, 1, age_s=0, phase=PHASE_EXITED)
    report = derive_status(run, NOW)
    assert report.status == (status if status != "nonsense" else RunStatus.FAILED)
    assert (report.exit_code, report.reason) == (code, "why")


def test_a_finish_of_an_earlier_attempt_does_not_count(run: RunPaths) -> None:
    finished = {"type": "run_finished", "status": "stopped", "exit_code": 75, "reason": "", "time_unix_s": NOW - 100}
    write_events(run, [START, step(1), finished])
    write_beat(run, 1, age_s=101.0)
    assert derive_status(run, NOW).status is RunStatus.STOPPED
    write_beat(run, 2, age_s=50.0)  # a later trainer beat, died, and wrote no event
    assert derive_status(run, NOW).status is RunStatus.CRASHED
    write_beat(run, 2, age_s=50.0, phase=PHASE_EXITED)
    assert derive_status(run, NOW).status is RunStatus.STOPPED
    write_events(run, [{"type": "run_resumed", "attempt": 2, "from_step": 1}])
    report = derive_status(run, NOW)
    assert (report.status, report.attempt) == (RunStatus.CRASHED, 2)


def test_a_resume_takes_back_later_steps(run: RunPaths) -> None:
    write_events(run, [START, *(step(number, loss=float(number)) for number in range(1, 11))])
    write_events(run, [{"type": "run_resumed", "attempt": 2, "from_step": 4, "step": 4}])
    report = derive_status(run, NOW)
    assert (report.step, report.last_loss) == (4, 4.0)
    write_events(run, [step(5, loss=None, attempt=2)])  # a NaN loss is not a loss
    assert derive_status(run, NOW).last_loss == 4.0


def test_a_run_that_never_started(run: RunPaths) -> None:
    assert derive_status(run).status is RunStatus.RUNNING  # just created: the trainer is being launched
    report = derive_status(run, time.time() + 60)
    assert report.status is RunStatus.CRASHED
    assert "before its first event" in report.reason
    run.trainer_log.write_bytes(b"ModuleNotFoundError: No module named 'torch'\n")
    assert derive_status(run).reason == "ModuleNotFoundError: No module named 'torch'"


def test_the_newest_configuration_gives_max_steps(run: RunPaths) -> None:
    run.attempt_toml(2).write_bytes(b"[train]\nmax_steps = 300\n")
    assert derive_status(run, NOW).max_steps == 300
    run.attempt_toml(3).write_bytes(b"not toml [")
    assert derive_status(run, NOW).max_steps is None
    write_events(run, [START])
    assert derive_status(run, NOW).max_steps == 90


def test_a_long_sample_at_the_end_does_not_hide_the_steps(run: RunPaths) -> None:
    write_events(run, [START, step(8, loss=1.5), {"type": "sample", "text": "x" * 200_000}])
    assert derive_status(run, NOW).last_loss == 1.5


def test_a_long_log_is_read_in_bounded_time(run: RunPaths) -> None:
    write_events(run, [START])
    with run.events.open("ab") as stream:
        stream.truncate(4 * 1024**4)  # 4 TiB, sparse
        stream.seek(0, os.SEEK_END)
        stream.write(b"\n")
    write_events(run, [step(12)])
    began = time.monotonic()
    assert derive_status(run, NOW).step == 12
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("name", ["events.jsonl", "heartbeat.json", "trainer.log", "run.toml", "lock", "checkpoints"])
@pytest.mark.parametrize("kind", ["fifo", "symlink loop", "directory", "garbage"])
def test_hostile_files_are_survived(run: RunPaths, name: str, kind: str) -> None:
    path = run.root / name
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "symlink loop":
        path.symlink_to(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(os.urandom(100_000))
    assert derive_status(run, NOW).status is RunStatus.CRASHED


@settings(max_examples=300, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.lists(
            st.dictionaries(
                st.sampled_from(["type", "attempt", "step", "time_unix_s", "loss", "step_time_s", "status", "reason"]),
                st.one_of(
                    st.sampled_from(["step", "run_finished", "paused", "error"]),
                    st.integers(),
                    st.floats(allow_nan=False),
                    st.none(),
                    st.text(max_size=5),
                ),
            ).map(msgspec.json.encode),
            max_size=5,
        ).map(b"\n".join),
    )
)
def test_any_log_gives_a_printable_status(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    run = RunPaths(tmp_path_factory.mktemp("run"))
    run.events.write_bytes(data + b"\n")
    run.trainer_log.write_bytes(data)
    report = derive_status(run, NOW)
    assert safe_text(report.reason) == report.reason
    msgspec.json.encode(report)
