"""Signals, screens that die or block, and how ends are told, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from gpuworkbench.runs.control import send_command
from gpuworkbench.runs.manifest import list_checkpoints
from gpuworkbench.runs.status import RunStatus, derive_status
from tests.fixtures.local_run import LocalRuns, final_tensors
from tests.fixtures.processes import (
    ENDLESS,
    ONLY_STEPS,
    SLOW,
    errors_of,
    paths_of,
    status_of,
    wait_for_step,
)
from tests.fixtures.tiny_run import Workspace, wait_until

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
