"""The app is told to end from outside: its run trains on, and the terminal is as it was."""

from __future__ import annotations

import os
import signal
import termios
import time
from pathlib import Path

import pytest

from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.paths import RunPaths
from tests.fixtures.tiny_run import Workspace, wait_until
from tests.tui.test_terminal import Terminal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_gives_the_terminal_back(tmp_path: Path, number: signal.Signals) -> None:
    terminal = Terminal(Workspace(tmp_path))
    probe = os.dup(terminal.master)
    terminal.read_until(b"quickstart")
    assert not termios.tcgetattr(probe)[3] & termios.ECHO
    os.kill(terminal.process.pid, number)
    assert terminal.end() == 128 + number
    assert termios.tcgetattr(probe)[3] & termios.ECHO
    os.close(probe)
    for restored in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1000l", b"\x1b[?2004l"):
        assert terminal.output.rindex(restored) > terminal.output.rindex(restored[:-1] + bytes([restored[-1] ^ 4]))
    assert b"Traceback" not in terminal.output


def test_its_run_trains_on_and_nothing_raw_is_told(tmp_path: Path) -> None:
    """With notifications on, of a run whose label is hostile."""
    workspace = Workspace(tmp_path)
    settings = tmp_path / "config" / "gpuworkbench" / "settings.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('notify = "desktop"\n')
    arguments = ("--preset", str(workspace.preset), "--run-id", "left", "--steps", "100000")
    terminal = Terminal(workspace, *arguments, "--set", "sample.interval_steps=0", TMUX="", DISPLAY="", VTE_VERSION="")
    terminal.read_until("● running".encode(), 60)
    run = RunPaths(workspace.runs / "left")
    run.label.write_text('{"name": "\\u001b]52;c;aGk=\\u0007"}')
    wait_until(lambda: workspace.losses("left"), what="a first step")
    os.kill(terminal.process.pid, signal.SIGTERM)
    assert terminal.end() == 143
    step = max(workspace.losses("left"), default=0)
    wait_until(lambda: max(workspace.losses("left"), default=0) > step, what="further steps")
    assert probe_lock(run.lock) is not None
    workspace.kill_trainer("left")
    wait_until(lambda: probe_lock(run.lock) is None, what="free lock")
    assert b"\x1b]52" not in terminal.output


def test_a_notification_reaches_the_terminal_as_one_sequence(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    settings = tmp_path / "config" / "gpuworkbench" / "settings.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('notify = "desktop"\n')
    arguments = ("--preset", str(workspace.preset), "--run-id", "ending", "--steps", "100000")
    terminal = Terminal(workspace, *arguments, "--set", "sample.interval_steps=0", TMUX="", DISPLAY="", VTE_VERSION="")
    terminal.read_until("● running".encode(), 60)
    wait_until(lambda: workspace.losses("ending"), what="a first step")
    time.sleep(2)  # one look at who is alive
    workspace.kill_trainer("ending")
    terminal.read_until(b"\x1b]9;gpuworkbench: ending crashed", 20)
    terminal.press(b"q")
    assert terminal.end() == 0
