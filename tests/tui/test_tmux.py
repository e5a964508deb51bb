"""The app in a real tmux session, driven with its keys and read from its screen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.hybrid_run import RUN_ID, hybrid_run
from tests.fixtures.recorded_run import completed_run
from tests.fixtures.tiny_run import Workspace

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
WITHIN_S = 60.0


class Session:
    """A tmux server of its own with one window of 100 x 34 that runs the app."""

    def __init__(self, workspace: Workspace) -> None:
        self._socket = workspace.root / "tmux"
        environ = {**workspace.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "TMUX": ""}
        self._environ = {name: value for name, value in environ.items() if value}
        size = ("-x", "100", "-y", "34")
        app = f"{sys.executable} -m gpuworkbench; echo left with $?; exec cat"
        self.call("-f", os.devnull, "new-session", "-d", *size, "-c", str(workspace.root), app)

    def call(self, *words: str) -> str:
        command = ["tmux", "-u", "-S", str(self._socket), *words]
        return subprocess.run(command, env=self._environ, check=True, capture_output=True, text=True).stdout

    def press(self, *keys: str) -> None:
        self.call("send-keys", *keys)

    def see(self, words: str) -> str:
        """The screen, once it shows `words`."""
        deadline = time.monotonic() + WITHIN_S
        while words not in (shown := self.call("capture-pane", "-p")):
            assert time.monotonic() < deadline, f"no {words!r} on:\n{shown}"
            time.sleep(0.1)
        return shown


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    workspace = Workspace(tmp_path)
    completed_run(workspace.runs), hybrid_run(workspace.runs)
    session = Session(workspace)
    yield session
    subprocess.run(["tmux", "-S", str(session._socket), "kill-server"], check=False, capture_output=True)


def test_from_home_to_a_run_and_out(session: Session) -> None:
    session.see("quickstart-0001")
    session.press("Tab")
    session.press("Enter")
    session.see("predicted, not measured")
    session.see("1 Loss")
    session.see(f"✗ crashed  {RUN_ID}")
    session.press("5")
    session.see("Reliability of the confidence")
    session.press("Escape")
    session.see("2 Memory")
    session.press("x")
    session.see("by tokens")
    session.see("10M")  # tokens
    session.call("resize-window", "-x", "80", "-y", "24")
    shown = session.see("8 Messages")
    assert all(len(line) <= 80 for line in shown.split("\n"))
    session.press("?")
    session.see("Keys of Live")
    session.press("Escape")
    session.press("Escape")
    session.see("Presets")
    session.press("q")
    session.see("left with 0")
