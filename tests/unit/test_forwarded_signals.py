"""Signals to a headless run reach its trainer, whenever they come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuworkbench.commands.follow import forwarded_signals
from gpuworkbench.launch.spawn import TrainerProcess
from gpuworkbench.runs.lock import RunLock
from gpuworkbench.runs.paths import RunPaths
from tests.unit.run_helpers import answer, end, start_holder, tell


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


@pytest.fixture
def holder(paths: RunPaths) -> Iterator[subprocess.Popen[str]]:
    """Stands for a trainer: takes the run's lock when told to, and dies of the first signal."""
    process = start_holder(paths)
    yield process
    end(process, kill=True)


def trainer_of(paths: RunPaths, process: subprocess.Popen[str]) -> TrainerProcess:
    return TrainerProcess(paths, process)  # type: ignore[arg-type]


def test_a_signal_while_the_trainer_is_spawned_waits_for_it(paths: RunPaths, holder: subprocess.Popen[str]) -> None:
    with forwarded_signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        trainer = signals.trainer = trainer_of(paths, holder)
        assert not trainer.is_settled(), "it has no handler for it before it holds its run"
        tell(holder)
        assert answer(holder) == "won"
        trainer.deliver()
        holder.wait(10)
    assert trainer.exit_code() == 143
    assert signals.n_asked == 1


def test_the_second_signal_kills_a_trainer_that_never_came_to_its_run(
    paths: RunPaths, holder: subprocess.Popen[str]
) -> None:
    with forwarded_signals() as signals:
        trainer = signals.trainer = trainer_of(paths, holder)
        os.kill(os.getpid(), signal.SIGINT)
        assert trainer.exit_code() is None
        os.kill(os.getpid(), signal.SIGINT)
        holder.wait(10)
    assert trainer.exit_code() == 137


def test_each_signal_goes_on_as_what_it_is(paths: RunPaths, holder: subprocess.Popen[str]) -> None:
    tell(holder)
    assert answer(holder) == "won"
    with forwarded_signals() as signals:
        trainer = signals.trainer = trainer_of(paths, holder)
        assert trainer.is_settled()
        os.kill(os.getpid(), signal.SIGINT)
        holder.communicate(timeout=10)
    assert trainer.exit_code() in (1, 130), "Python's own handler, or none yet"


def test_a_lock_of_somebody_else_is_not_the_trainers(paths: RunPaths) -> None:
    lock = RunLock(paths.lock)
    lock.acquire()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        trainer = TrainerProcess(paths, process)
        assert not trainer.holds_run()
        assert not trainer.is_settled()
        process.kill()
    assert trainer.is_settled()
    lock.release()


def test_the_handlers_are_put_back(paths: RunPaths) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with forwarded_signals():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


def test_nohup_is_respected() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with forwarded_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)
