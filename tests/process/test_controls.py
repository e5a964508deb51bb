"""Commands, signals and screens around a living trainer, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from gpuworkbench.runs.control import send_command
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.manifest import list_checkpoints, verify_checkpoint
from gpuworkbench.runs.status import RunStatus, derive_status
from tests.fixtures.local_run import LocalRuns, final_tensors
from tests.fixtures.processes import (
    ENDLESS,
    ONLY_STEPS,
    SLOW,
    end,
    errors_of,
    no_orphans,
    paths_of,
    start_endless,
    status_of,
    wait_for_step,
)
from tests.fixtures.tiny_run import Workspace, wait_until

COMMANDS = ("pause", "continue", "checkpoint", "stop")


@pytest.fixture(scope="module")
def workspace(local: LocalRuns) -> Iterator[Workspace]:
    """The workspace of the runs in this process, so that real trainers find the data prepared."""
    with no_orphans(local.workspace.root):
        yield local.workspace


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


# Signals

N_STEPS = 150


@pytest.fixture(scope="module")
def undisturbed(local: LocalRuns) -> tuple[dict[int, float], dict[str, bytes]]:
    """Losses and final tensors of N_STEPS steps that nobody disturbed."""
    sets = {"eval.interval_steps": 0, "schedule.name": "constant", "train.max_steps": N_STEPS}
    paths = local.trained("undisturbed", sets)
    return local.losses(paths), final_tensors(paths, N_STEPS)


def test_every_orderly_stop_exits_75_and_resumes_identically(
    workspace: Workspace, undisturbed: tuple[dict[int, float], dict[str, bytes]]
) -> None:
    """Ctrl-C, SIGTERM and a stop command, one after the other, on one run."""
    arguments = ["--preset", str(workspace.preset), "--run-id", "stopped", *ONLY_STEPS, "--steps", str(N_STEPS)]
    reasons, reached = [], 0
    for way in (signal.SIGINT, signal.SIGTERM, None):
        process = workspace.start("--headless", *arguments)
        wait_for_step(workspace, "stopped", reached + 4)
        if way is None:
            send_command(paths_of(workspace, "stopped"), "stop")
        else:
            process.send_signal(way)
        code, err = errors_of(process)
        assert code == 75, err
        assert "Traceback" not in err
        last = workspace.events("stopped")[-1]
        assert (last["type"], last["status"], last["exit_code"]) == ("run_finished", "stopped", 75)
        reached = last["step"]
        assert list_checkpoints(paths_of(workspace, "stopped"))[0].step == reached < N_STEPS
        reasons.append(last["reason"])
        arguments = ["--resume", "stopped"]
    assert reasons == ["SIGINT", "SIGTERM", "stop command"]
    result = workspace.resume("stopped")
    assert result.returncode == 0, result.stderr
    assert workspace.losses("stopped") == undisturbed[0]
    assert workspace.final_files("stopped", N_STEPS) == undisturbed[1]
    assert len([e for e in workspace.events("stopped") if e["type"] == "step"]) == N_STEPS, "no step was trained twice"
    assert status_of(workspace, "stopped") == "completed"


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [(signal.SIGINT, signal.SIGINT, 130), (signal.SIGTERM, signal.SIGTERM, 143)],
    ids=["SIGINT", "SIGTERM"],
)
def test_the_second_signal_ends_at_once(
    workspace: Workspace, first: signal.Signals, second: signal.Signals, code: int
) -> None:
    run_id = f"twice-{first.name.lower()}"
    preset = ("--preset", str(workspace.preset), "--run-id", run_id)
    process = workspace.start("--headless", *preset, *ONLY_STEPS, *ENDLESS, *SLOW)
    wait_until(lambda: any(e["type"] == "phase_changed" for e in workspace.events(run_id)), what="start")
    log = paths_of(workspace, run_id).trainer_log
    process.send_signal(first)
    wait_until(lambda: f"{first.name}: stopping after this step" in log.read_text(), what="the first signal")
    process.send_signal(second)
    started = time.monotonic()
    found, err = errors_of(process)
    assert found == code, err
    assert time.monotonic() - started < 5, "a step of this run takes longer"
    assert f"ended by signal {second}" in err
    assert "no checkpoint yet" in err
    report = derive_status(paths_of(workspace, run_id))
    assert report.status is RunStatus.CRASHED
    assert "the next SIGINT or SIGTERM ends it at once" in report.reason


def test_a_signal_while_the_trainer_starts_is_not_lost(workspace: Workspace) -> None:
    preset = ("--preset", str(workspace.preset), "--run-id", "early")
    process = workspace.start("--headless", *preset, *ONLY_STEPS, *ENDLESS)
    wait_until(paths_of(workspace, "early").trainer_log.exists, what="spawned trainer")
    process.send_signal(signal.SIGINT)
    code, err = errors_of(process)
    assert code == 75, err
    assert list_checkpoints(paths_of(workspace, "early")) != []
    assert workspace.events("early")[-1]["reason"] == "SIGINT"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGHUP, 129)], ids=["SIGKILL", "SIGHUP"])
def test_a_screen_that_dies_leaves_the_trainer_training_to_its_end(
    workspace: Workspace,
    undisturbed: tuple[dict[int, float], dict[str, bytes]],
    number: signal.Signals,
    code: int,
) -> None:
    run_id = f"screen-{number.name.lower()}"
    preset = ("--preset", str(workspace.preset), "--run-id", run_id)
    process = workspace.start("--headless", *preset, *ONLY_STEPS, "--steps", str(N_STEPS))
    wait_for_step(workspace, run_id, 3)
    process.send_signal(number)
    found, _ = errors_of(process)
    assert found == code
    wait_until(lambda: workspace.events(run_id)[-1]["type"] == "run_finished", what="end of the run")
    assert workspace.events(run_id)[-1]["status"] == "completed"
    assert workspace.losses(run_id) == undisturbed[0]
    attached = workspace.call("attach", run_id)
    assert attached.returncode == 0
    assert f"{run_id}: completed (reached max_steps = {N_STEPS})" in attached.stdout


def test_a_blocked_screen_does_not_stall_training(workspace: Workspace) -> None:
    """Nobody reads the screen's pipe: it fills, headless hangs, the trainer does not know of it."""
    preset = ("--preset", str(workspace.preset), "--run-id", "blocked")
    read, write = os.pipe()
    process = workspace.start(
        "--headless",
        "--json",
        *preset,
        *ONLY_STEPS,
        "--steps",
        str(N_STEPS * 3),
        stdout=write,
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    wait_until(lambda: (workspace.events("blocked") or [{"type": ""}])[-1]["type"] == "run_finished", what="end")
    assert process.poll() is None, "the log is larger than a pipe holds"
    os.close(read)
    process.wait(30)


def test_a_killed_trainer_is_told_with_its_last_words(workspace: Workspace) -> None:
    preset = ("--preset", str(workspace.preset), "--run-id", "killed")
    process = workspace.start("--headless", *preset, *ONLY_STEPS, *ENDLESS)
    paths = paths_of(workspace, "killed")
    wait_for_step(workspace, "killed", 3)
    saved = workspace.call("checkpoint", "killed").stdout.split()[4]
    with paths.trainer_log.open("a") as log:
        log.write("terminate called after throwing an instance of 'c10::Error'\n")
    workspace.kill_trainer("killed")
    started = time.monotonic()
    code, err = errors_of(process)
    assert code == 137
    assert time.monotonic() - started < 10
    assert "the trainer was ended by signal 9" in err
    assert f"its last checkpoint is of step {saved}: gpuworkbench --headless --resume killed" in err
    assert "  terminate called after throwing an instance of 'c10::Error'" in err
    assert status_of(workspace, "killed") == "crashed"
    report = derive_status(paths)
    assert report.log_end == ("terminate called after throwing an instance of 'c10::Error'",)
    assert report.last_checkpoint_step == int(saved)
    attached = workspace.call("attach", "killed")
    assert attached.returncode == 1
    assert "killed crashed: terminate called" in attached.stderr
    assert f"last checkpoint is of step {saved}" in attached.stderr


# Ends, as everybody sees them


def test_a_failed_run_is_shown_as_one(local: LocalRuns, workspace: Workspace) -> None:
    paths = local.create("failed", {"optimizer.lr": 1e37})
    assert local.attempt(paths) == 1
    assert status_of(workspace, "failed") == "failed"
    attached = workspace.call("attach", "failed")
    assert attached.returncode == 1
    assert "failed (" in attached.stdout


def test_a_headless_failure_returns_the_trainers_code(workspace: Workspace) -> None:
    result = workspace.train("failing", *ONLY_STEPS, "--set", "optimizer.lr=1e37")
    assert result.returncode == 1
    assert "error" in result.stdout
    assert "Traceback" not in result.stderr


# Run directories from elsewhere


@pytest.fixture
def saved(local: LocalRuns, request: pytest.FixtureRequest) -> str:
    """A run with a checkpoint, to do something to."""
    run_id = "saved-" + "".join(char if char.isalnum() else "-" for char in request.node.name)
    local.trained(run_id, {"train.max_steps": 7})
    return run_id


@pytest.mark.parametrize("what", ["FIFO", "link", "directory"])
def test_a_log_that_is_no_file_is_refused_at_once(workspace: Workspace, saved: str, what: str, tmp_path: Path) -> None:
    log = paths_of(workspace, saved).trainer_log
    precious = tmp_path / "precious"
    precious.write_text("mine")
    if what == "FIFO":
        os.mkfifo(log)
    elif what == "link":
        log.symlink_to(precious)
    else:
        log.mkdir()
    started = time.monotonic()
    result = workspace.resume(saved)
    assert time.monotonic() - started < 10
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "trainer.log" in line
    assert precious.read_text() == "mine"


def test_nothing_is_imported_from_a_run_directory(workspace: Workspace, saved: str) -> None:
    """The trainer works in the run's directory; what lies there must not become code."""
    root = paths_of(workspace, saved).root
    for name in ("torch.py", "gpuworkbench.py", "sitecustomize.py", "json.py", "msgspec.py"):
        (root / name).write_text("import os\nos.open('/tmp/owned', os.O_CREAT)\nraise SystemExit('owned')\n")
    result = workspace.resume(saved, "--steps", "9")
    assert result.returncode == 0, result.stderr + (root / "trainer.log").read_text()
    assert workspace.events(saved)[-1]["step"] == 9
    assert not Path("/tmp/owned").exists()


def test_a_refused_resume_takes_its_run_file_back(workspace: Workspace, saved: str) -> None:
    paths = paths_of(workspace, saved)
    text = paths.run_toml.read_text()
    start = text.index('sha256 = "') + len('sha256 = "')
    paths.run_toml.write_text(text[:start] + ("0" if text[start] != "0" else "1") + text[start + 1 :])
    result = workspace.resume(saved, "--steps", "9")
    assert result.returncode == 2
    assert "gives other tokens than this run was made with" in result.stderr + result.stdout
    assert not list(paths.root.glob("run.*.toml"))
    assert paths.root.exists()
