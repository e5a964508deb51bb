"""The app as a person's terminal sees it: a pty, keys in, bytes out."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.fixtures.recorded_run import hostile_run
from tests.fixtures.tiny_run import Workspace


class Terminal:
    """A process on a pty of a given size, and all that it wrote."""

    def __init__(self, workspace: Workspace, *arguments: str, size: tuple[int, int] = (80, 24), **environ: str) -> None:
        self.master, worker = pty.openpty()
        fcntl.ioctl(worker, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        variables = {**workspace.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **environ}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpuworkbench", *arguments],
            stdin=worker,
            stdout=worker,
            stderr=worker,
            env={name: value for name, value in variables.items() if value},
            cwd=workspace.root,
            start_new_session=True,
        )
        os.close(worker)
        self.output = b""

    def read_until(self, words: bytes, timeout_s: float = 30.0) -> None:
        """Read until the output from here on holds `words`."""
        start, deadline = len(self.output), time.monotonic() + timeout_s
        while words not in self.output[start:]:
            assert time.monotonic() < deadline, f"no {words!r} in {self.output[start:][-2000:]!r}"
            self._read(0.1)

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self.master, keys)

    def end(self, timeout_s: float = 20.0) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            self._read(0.05)
        while self._read(0.05):
            pass
        os.close(self.master)
        return self.process.returncode

    def _read(self, wait_s: float) -> bool:
        if not select.select([self.master], [], [], wait_s)[0]:
            return False
        try:
            data = os.read(self.master, 65_536)
        except OSError:
            return False
        self.output += data
        return bool(data)


def test_hostile_text_reaches_no_terminal(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    hostile_run(workspace.runs)
    terminal = Terminal(workspace, size=(140, 40))
    terminal.read_until(b"quickstart")
    terminal.press(b"\t\r")
    terminal.read_until(b"Messages")
    terminal.press(b"6")
    time.sleep(0.5)
    terminal.press(b"\x1b")
    time.sleep(0.3)
    terminal.press(b"q")
    assert terminal.end() == 0
    text = terminal.output.decode()
    assert "[bold]no[/bold]" in text
    assert "\x1b]52" not in text
    assert not re.search("[\x80-\x9f\u202e]", text)
    assert "\x1b[31mred" not in text


@pytest.mark.parametrize("no_color", ["1", ""])
def test_no_color_is_kept_to(tmp_path: Path, no_color: str) -> None:
    terminal = Terminal(Workspace(tmp_path), NO_COLOR=no_color)
    terminal.read_until(b"quickstart")
    terminal.press(b"q")
    assert terminal.end() == 0
    found = re.findall(rb"\x1b\[(?:[\d;]*;)?[34]8;2;(\d+);(\d+);(\d+)", terminal.output)
    colours = {tuple(map(int, rgb)) for rgb in found}
    assert colours
    is_grey = all(max(rgb) - min(rgb) <= 2 for rgb in colours)
    assert is_grey is bool(no_color)


def test_a_lost_terminal_leaves_the_run_alone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    arguments = ("--preset", str(workspace.preset), "--run-id", "left", "--steps", "3000")
    terminal = Terminal(workspace, *arguments, "--set", "sample.interval_steps=0")
    terminal.read_until("● running".encode(), 60)
    step = max(workspace.losses("left"), default=0)
    os.killpg(terminal.process.pid, signal.SIGHUP)
    os.close(terminal.master)
    terminal.process.wait(20)
    deadline = time.monotonic() + 30
    while max(workspace.losses("left"), default=0) <= step:
        assert time.monotonic() < deadline, "the run ended with its screen"
        time.sleep(0.05)
    workspace.kill_trainer("left")
