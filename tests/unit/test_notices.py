"""Being told of a run's end: which ends, by what, and that nothing raw from a run's name gets out."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui import notices
from gpuworkbench.tui.notices import Ended, EndsSource, desktop_sequence, notify_send_command, tell
from tests.fixtures.recorded_run import HOSTILE, NOW, completed_run, crashed_run

OSC_9 = re.compile("\x1b\\]9;gpuworkbench: ([^\x00-\x1f\x7f-\x9f;\u202a-\u202e]*)\x07")


@pytest.mark.parametrize("body", ["run-1 completed", HOSTILE, "a;b\x07\x1b]52;c;aGk=\x07", "\n\u202e\x9b2J" * 500])
def test_a_sequence_holds_one_printable_line(body: str) -> None:
    match = OSC_9.fullmatch(desktop_sequence(body, {"TERM": "xterm-256color"}))
    assert match is not None
    assert len(match[1]) <= 120


def test_each_terminal_gets_what_it_understands() -> None:
    assert desktop_sequence("r done", {}) == "\x1b]9;gpuworkbench: r done\x07"
    for environ in ({"TERM": "rxvt-unicode-256color"}, {"TERM": "xterm", "VTE_VERSION": "7600"}):
        assert desktop_sequence("r done", environ) == "\x1b]777;notify;gpuworkbench;r done\x07"
    inside = desktop_sequence("r; done", {"TMUX": "/tmp/tmux,1,0"})
    assert inside == "\x1bPtmux;\x1b\x1b]9;gpuworkbench: r, done\x07\x1b\\"


def test_notify_send_only_where_the_person_sits(tmp_path: Path) -> None:
    program = tmp_path / "notify-send"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    here = {"PATH": str(tmp_path), "DISPLAY": ":0"}
    command = notify_send_command("--help <b>x</b> & \x1b[31m", here)
    assert command is not None
    title, body = command[-2:]
    assert command[:3] == [str(program), "--app-name=gpuworkbench", "--"]
    assert (title, body) == ("gpuworkbench", "--help &lt;b&gt;x&lt;/b&gt; &amp; ␛[31m")
    assert notify_send_command("x", {**here, "SSH_CONNECTION": "1"}) is None
    assert notify_send_command("x", {"PATH": str(tmp_path)}) is None
    assert notify_send_command("x", {"PATH": "/nowhere", "DISPLAY": ":0"}) is None


def test_opt_in() -> None:
    written: list[str] = []
    for by in ("off", "bell", "desktop"):
        tell("r done", by, {}, written.append)
    assert written == ["\x07", "\x1b]9;gpuworkbench: r done\x07"]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """The runs that have a trainer."""
    roots: set[Path] = set()
    monkeypatch.setattr(notices, "probe_lock", lambda lock: 1 if lock.parent in roots else None)
    monkeypatch.setattr(notices, "INTERVAL_S", 0.0)
    return roots


def rounds(source: EndsSource, steps: list[object]) -> Iterator[tuple[Ended, ...]]:
    """What the source says while `steps` happen, one a round."""
    pending = iter(steps)

    class Ticking(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            step = next(pending, None)
            if step is None:
                self.set()
            elif callable(step):
                step()
            return True

    stop = Ticking()
    yield from source(stop)


def test_ends_that_happen_while_it_looks_are_told_once(tmp_path: Path, held: set[Path]) -> None:
    before = completed_run(tmp_path / "runs", "old")
    done, crashed = completed_run(tmp_path / "runs", "done"), crashed_run(tmp_path / "elsewhere", "crashed")
    held |= {done.root, crashed.root}
    source = EndsSource(tmp_path / "runs", lambda: [crashed], lambda: NOW)
    steps: list[object] = [lambda: held.remove(done.root), lambda: None, lambda: held.remove(crashed.root)]
    told = list(rounds(source, steps))
    assert [[end.run_id for end in ends] for ends in told] == [["done"], ["done", "crashed"]]
    assert told[-1][0].words.startswith("done completed")
    assert "out of host memory" in told[-1][1].words
    assert before.run_id not in str(told)


def test_what_was_stopped_or_deleted_is_not_told(tmp_path: Path, held: set[Path]) -> None:
    stopped, gone = completed_run(tmp_path, "stopped"), completed_run(tmp_path, "gone")
    log = stopped.events.read_bytes().replace(b'"status":"completed"', b'"status":"stopped"')
    stopped.events.write_bytes(log)
    held |= {stopped.root, gone.root}

    def end() -> None:
        shutil.rmtree(gone.root)
        held.clear()

    assert list(rounds(EndsSource(tmp_path, list[RunPaths], lambda: NOW), [end, lambda: None])) == []
