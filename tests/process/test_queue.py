"""Runs that wait for one another, as real processes: order, commands while they wait, kills, and screens that leave."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.status import RunStatus, derive_status
from tests.fixtures.processes import ENDLESS, ONLY_STEPS, errors_of, no_orphans, paths_of, start_endless
from tests.fixtures.tiny_run import Workspace, wait_until


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    with no_orphans(tmp_path):
        workspace = Workspace(tmp_path)
        monkeypatch.setenv("XDG_STATE_HOME", workspace.environ["XDG_STATE_HOME"])
        yield workspace


def queue(workspace: Workspace, run_id: str, *arguments: str) -> None:
    """A detached run of five steps in the queue."""
    preset = ("--preset", str(workspace.preset), "--run-id", run_id)
    result = workspace.call("--detach", "--queue", *preset, *ONLY_STEPS, "--steps", "5", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(("it waits for its turn in process ", "training goes on in process "))


def wait_for_status(workspace: Workspace, run_id: str, status: RunStatus) -> None:
    paths = paths_of(workspace, run_id)
    wait_until(lambda: derive_status(paths).status is status, what=f"{run_id} {status}")


def times(workspace: Workspace, run_id: str, kind: str) -> list[float]:
    return [event["time_unix_s"] for event in workspace.events(run_id) if event["type"] == kind]


def test_the_queue(workspace: Workspace) -> None:
    """One run trains; of four that wait one is interrupted, one is stopped, and the others follow in their order."""
    start_endless(workspace, "first")
    watched = workspace.start("--headless", "--queue", "--preset", str(workspace.preset), "--run-id", "watched")
    wait_for_status(workspace, "watched", RunStatus.QUEUED)
    queue(workspace, "stopped")
    for run_id in ("second", "third"):
        queue(workspace, run_id)
    assert [derive_status(paths_of(workspace, run)).reason for run in ("watched", "second")] == [
        "waiting for first to end",
        "waiting for first and 2 more to end",
    ]
    listed = workspace.call("runs").stdout
    assert "queued" in listed
    assert "waiting for first and 3 more to end" in listed

    paused = workspace.call("pause", "second")
    assert paused.returncode == 1
    assert "second refused 'pause': the run waits in a queue: there is nothing to pause yet" in paused.stderr
    stopped = workspace.call("stop", "stopped")
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped: stopped at step 0; go on with: gpuworkbench --headless --resume stopped" in stopped.stdout

    watched.send_signal(signal.SIGINT)
    out, _ = watched.communicate(timeout=60)
    assert watched.returncode == 75
    assert "queued: waiting for first to end" in out
    assert "leaving the queue" in out
    assert workspace.events("watched")[-1]["reason"] == "SIGINT in the queue"
    assert times(workspace, "watched", "run_started") == []

    attached = workspace.start("attach", "third")
    pid = probe_lock(paths_of(workspace, "first").lock)
    assert pid
    os.kill(pid, signal.SIGKILL)  # nobody is left to say that the card is free
    code, err = errors_of(attached)
    assert (code, err) == (0, "")
    assert derive_status(paths_of(workspace, "second")).status is RunStatus.COMPLETED
    assert times(workspace, "second", "run_finished") <= times(workspace, "third", "run_started")
    assert list(Path(workspace.environ["XDG_STATE_HOME"]).rglob("*.json")) == []

    resumed = workspace.call("--headless", "--queue", "--resume", "stopped")
    assert resumed.returncode == 0, resumed.stderr
    assert max(workspace.losses("stopped")) == 5


def test_a_refusal_after_the_wait_leaves_nothing(workspace: Workspace) -> None:
    start_endless(workspace, "first")
    arguments = ("--preset", str(workspace.preset), "--run-id", "next", *ONLY_STEPS)
    waiting = workspace.start("--headless", "--queue", *arguments)
    wait_for_status(workspace, "next", RunStatus.QUEUED)
    workspace.corpus.write_text("another text, and so other tokens than were agreed. " * 400)
    assert workspace.call("stop", "first").returncode == 0
    code, err = errors_of(waiting)
    assert code == 2, err
    assert not paths_of(workspace, "next").root.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--queue", "--force"), "--queue waits for a card and --force shares it; give one of them"),
        (("--queue",), "--queue needs a run"),
    ],
)
def test_flags_that_mean_nothing(workspace: Workspace, flags: tuple[str, ...], message: str) -> None:
    preset = ("--preset", str(workspace.preset)) if len(flags) > 1 else ()
    result = workspace.call("--headless", *preset, *flags, *ENDLESS[:2] if preset else ())
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert message in line


def test_a_queue_that_cannot_be_written_refuses_the_run(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a folder")
    arguments = ("--preset", str(workspace.preset), "--run-id", "new", *ONLY_STEPS, "--steps", "2")
    result = workspace.call("--headless", "--queue", *arguments)
    assert result.returncode == 2
    assert "set XDG_STATE_HOME to another folder" in result.stderr
    assert not paths_of(workspace, "new").root.exists()
    plain = workspace.call("--headless", *arguments)
    assert plain.returncode == 0, plain.stderr
    assert (
        "others will not know that this run uses this host's CPU" in paths_of(workspace, "new").trainer_log.read_text()
    )
