"""The lock, with real processes: one winner, the pid in the message, freed by SIGKILL, probed without being taken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpuworkbench.errors import ExitCode, RunError, RunLockedError
from gpuworkbench.runs.lock import RunLock, probe_lock
from gpuworkbench.runs.paths import RunPaths
from tests.unit.run_helpers import answer, end, start_holder, tell


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    (tmp_path / "run").mkdir()
    return RunPaths(tmp_path / "run")


def test_sixteen_takers_one_winner(run: RunPaths) -> None:
    takers = [start_holder(run) for _ in range(16)]
    for taker in takers:
        tell(taker)
    answers = [answer(taker) for taker in takers]
    winner = takers[answers.index("won")].pid
    expected = f"lost run run is locked by process {winner}; attach to it, or stop it first"
    assert sorted(answers) == [expected] * 15 + ["won"]
    assert probe_lock(run.lock) == winner
    for taker in takers:
        end(taker)
    assert sorted(taker.returncode for taker in takers) == [0] + [ExitCode.LOCKED] * 15
    assert probe_lock(run.lock) is None


def test_sigkill_frees_the_lock(run: RunPaths) -> None:
    holder = start_holder(run)
    tell(holder)
    assert answer(holder) == "won"
    assert probe_lock(run.lock) == holder.pid
    end(holder, kill=True)
    assert probe_lock(run.lock) is None
    lock = RunLock(run.lock)
    lock.acquire()
    lock.release()


def test_probing_does_not_take_the_lock_or_drop_ones_own(run: RunPaths) -> None:
    lock = RunLock(run.lock)
    lock.acquire()
    lock.acquire()
    assert probe_lock(run.lock) == os.getpid()  # opening and closing the file here would have dropped it
    code = (
        "import sys; from pathlib import Path; from gpuworkbench.runs.lock import probe_lock;"
        "print(probe_lock(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(run.lock)]
    for _ in range(2):
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == str(os.getpid())
    with pytest.raises(RunLockedError, match=f"process {os.getpid()}"):
        RunLock(run.lock).acquire()
    lock.release()
    lock.release()
    assert probe_lock(run.lock) is None


def test_a_child_does_not_keep_the_lock_alive(run: RunPaths) -> None:
    """Forked data workers outlive a killed trainer for a moment; flock would stay locked through them."""
    code = (
        "import os, sys, time; from pathlib import Path; from gpuworkbench.runs.lock import RunLock;"
        "RunLock(Path(sys.argv[1])).acquire(); pid = os.fork();\n"
        "if pid == 0: os.close(1); time.sleep(20); os._exit(0)\n"
        "print(pid, flush=True); os._exit(0)"
    )
    command = [sys.executable, "-c", code, str(run.lock)]
    child = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    try:
        assert probe_lock(run.lock) is None
    finally:
        os.kill(child, 9)


def test_what_is_no_lock_file(run: RunPaths, tmp_path: Path) -> None:
    assert probe_lock(run.lock) is None
    assert probe_lock(tmp_path / "missing" / "lock") is None
    os.mkfifo(run.lock)
    assert probe_lock(run.lock) is None
    with pytest.raises(RunError, match="not a regular file"):
        RunLock(run.lock).acquire()
    run.lock.unlink()
    run.lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="cannot be locked"):
        RunLock(run.lock).acquire()
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(RunError, match="cannot be locked"):
        RunLock(tmp_path / "missing" / "lock").acquire()


def test_a_lock_that_failed_can_be_tried_again(run: RunPaths) -> None:
    holder = start_holder(run)
    tell(holder)
    answer(holder)
    lock = RunLock(run.lock, what="card 0")
    with pytest.raises(RunLockedError, match="card 0 is locked by process"):
        lock.acquire()
    end(holder)
    lock.acquire()
    assert probe_lock(run.lock) == os.getpid()
    lock.release()
