"""Commands, signals and screens around a living trainer, in real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import msgspec
import psutil
import pytest

from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.manifest import list_checkpoints, verify_checkpoint
from gpuworkbench.runs.status import RunStatus, derive_status
from tests.fixtures.processes import (
    end,
    errors_of,
    paths_of,
    start_endless,
    status_of,
    wait_for_step,
)
from tests.fixtures.tiny_run import Workspace, wait_until

COMMANDS = ("pause", "continue", "checkpoint", "stop")


# One endless run that many tests look at


@pytest.fixture(scope="module")
def live(workspace: Workspace) -> Iterator[str]:
    """A detached run that trains until it is told otherwise."""
    start_endless(workspace, "live")
    yield "live"
    end(workspace, "live")


@pytest.fixture
def training(workspace: Workspace, live: str) -> str:
    """The endless run; it must be training when a test begins and when it ends."""
    assert_training(workspace, live)
    return live


def assert_training(workspace: Workspace, run_id: str) -> None:
    step = max(workspace.losses(run_id), default=0)
    wait_for_step(workspace, run_id, step + 1)


def test_a_detached_run_goes_on_in_a_session_of_its_own(workspace: Workspace, training: str) -> None:
    pid = probe_lock(paths_of(workspace, training).lock)
    assert pid
    assert os.getsid(pid) == pid != os.getsid(0)
    trainer = psutil.Process(pid)
    files = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)}
    assert files == {"/dev/null", str(paths_of(workspace, training).trainer_log)}
    assert "-P" in trainer.cmdline()
    assert status_of(workspace, training) == "running"
    assert_training(workspace, training)


def test_attach_shows_the_run_and_ctrl_c_leaves_it_training(workspace: Workspace, training: str) -> None:
    attached = workspace.start("attach", training)
    assert attached.stdout is not None
    line = attached.stdout.readline()
    assert "step" in line
    attached.send_signal(signal.SIGINT)
    out, err = attached.communicate(timeout=60)
    assert (attached.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "detached; live goes on training"
    assert_training(workspace, training)


def test_attach_as_json_carries_the_events(workspace: Workspace, training: str) -> None:
    attached = workspace.start("attach", training, "--json")
    assert attached.stdout is not None
    first = msgspec.json.decode(attached.stdout.readline())
    assert first["type"] == "run_started"
    attached.kill()
    attached.communicate()
    assert_training(workspace, training)


def test_pause_and_continue(workspace: Workspace, training: str) -> None:
    paused = workspace.call("pause", training)
    assert (paused.returncode, paused.stderr) == (0, "")
    assert paused.stdout.startswith("live: paused at step ")
    step = max(workspace.losses(training))
    assert status_of(workspace, training) == "paused"
    assert max(workspace.losses(training)) == step
    saved = workspace.call("checkpoint", training)
    assert saved.stdout.strip() == f"live: checkpoint of step {step} is saved"
    assert verify_checkpoint(paths_of(workspace, training).checkpoint(step)).step == step
    assert max(workspace.losses(training)) == step
    went_on = workspace.call("continue", training, "--json")
    answer = msgspec.json.decode(went_on.stdout)
    assert (answer["ok"], answer["message"]) == (True, f"goes on from step {step}")
    wait_for_step(workspace, training, step + 1)
    assert status_of(workspace, training) == "running"


def test_checkpoint_command_returns_when_it_is_saved(workspace: Workspace, training: str) -> None:
    saved = workspace.call("checkpoint", training)
    assert saved.returncode == 0
    step = int(saved.stdout.split()[4])
    assert verify_checkpoint(paths_of(workspace, training).checkpoint(step)).step == step
    acknowledged = [e["step"] for e in workspace.events(training) if e["type"] == "checkpoint_saved"]
    assert step in acknowledged


def test_a_checkpoint_that_cannot_be_written_is_told(workspace: Workspace, training: str) -> None:
    paths = paths_of(workspace, training)
    hidden = paths.checkpoints.with_name("hidden")
    paths.checkpoints.rename(hidden)
    try:
        failed = workspace.call("checkpoint", training)
    finally:
        hidden.rename(paths.checkpoints)
    assert failed.returncode == 1
    assert len(failed.stderr.splitlines()) == 1
    assert "could not be written (No such file or directory)" in failed.stderr
    assert_training(workspace, training)


@pytest.mark.parametrize("changes", [(), ("--steps", "200000000")], ids=["unchanged", "changed"])
def test_a_second_resume_is_refused_in_one_line(workspace: Workspace, training: str, changes: tuple[str, ...]) -> None:
    pid = probe_lock(paths_of(workspace, training).lock)
    result = workspace.resume(training, *changes)
    assert result.returncode == 3
    (line,) = result.stderr.splitlines()
    assert f"live is being trained by process {pid}" in line
    assert result.stdout == ""
    assert not list(paths_of(workspace, training).root.glob("run.*.toml"))
    assert_training(workspace, training)


def test_a_hung_trainer_is_found_out(workspace: Workspace, training: str) -> None:
    paths = paths_of(workspace, training)
    pid = probe_lock(paths.lock)
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        assert derive_status(paths).status is RunStatus.RUNNING
        report = derive_status(paths, now=time.time() + 31)
        assert report.status is RunStatus.STALLED
        assert report.pid == pid
        assert "31 s" in report.reason or "32 s" in report.reason
    finally:
        os.kill(pid, signal.SIGCONT)
    assert_training(workspace, training)
    assert derive_status(paths).status is RunStatus.RUNNING


def test_stop_command_saves_and_ends(workspace: Workspace, training: str) -> None:
    """The last test of the endless run."""
    stopped = workspace.call("stop", training)
    assert stopped.returncode == 0, stopped.stderr
    paths = paths_of(workspace, training)
    step = list_checkpoints(paths)[0].step
    assert stopped.stdout.startswith(f"live: stopped at step {step}; go on with: gpuworkbench --headless --resume live")
    last = workspace.events(training)[-1]
    assert (last["type"], last["status"], last["exit_code"]) == ("run_finished", "stopped", 75)
    assert (last["step"], last["reason"]) == (step, "stop command")
    assert status_of(workspace, training) == "stopped"
    attached = workspace.call("attach", training)
    assert attached.returncode == 75
    assert "stopped (stop command)" in attached.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_to_a_run_that_nobody_trains(workspace: Workspace, live: str, command: str) -> None:
    wait_until(lambda: probe_lock(paths_of(workspace, live).lock) is None)
    refused = workspace.call(command, live)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "live is stopped: no trainer is running; go on with: gpuworkbench --headless --resume live" in line
    assert not any(paths_of(workspace, live).control.iterdir())
    unknown = workspace.call(command, "nothing-like-it")
    assert (unknown.returncode, len(unknown.stderr.splitlines())) == (2, 1)


def test_of_simultaneous_resumes_one_wins(workspace: Workspace, live: str) -> None:
    """Ten at once, each with a change of its own: one trains by its file, and no other file is left."""
    paths = paths_of(workspace, live)
    wait_until(lambda: probe_lock(paths.lock) is None)
    lengths = [100_000_001 + number for number in range(10)]
    start = [workspace.start("--detach", "--resume", live, "--steps", str(length)) for length in lengths]
    ended = [errors_of(process) for process in start]
    codes = [code for code, _ in ended]
    assert sorted(codes) == [0] + [3] * 9, ended
    winner = lengths[codes.index(0)]
    pid = probe_lock(paths.lock)
    for code, err in ended:
        if code == 3:
            assert sum("live is being trained by process" in line for line in err.splitlines()) == 1
            assert [line for line in err.splitlines() if not line.startswith(("changed:", "gpuworkbench:"))] == []
    (run_file,) = paths.root.glob("run.*.toml")
    assert f"max_steps = {winner}" in run_file.read_text()
    resumed = [event for event in workspace.events(live) if event["type"] == "run_resumed"]
    assert [(event["pid"], event["max_steps"]) for event in resumed] == [(pid, winner)]
    assert_training(workspace, live)
    end(workspace, live)
