"""Telling a person who looks elsewhere that a run ended: the bell, or a notification of their desktop.

Over SSH only the terminal can reach the desktop: OSC 9 (iTerm2, kitty, WezTerm, Ghostty, foot) or OSC 777 (rxvt-unicode
and terminals on VTE). Within tmux it is wrapped to pass through. Where the app runs on the desktop itself and there is
`notify-send`, that is asked. The text is printable, bounded and without the characters that end such a sequence.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuworkbench.config.user_settings import NotifyBy
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.status import RunStatus, derive_status
from gpuworkbench.runs.store import is_run, run_roots
from gpuworkbench.text import safe_text

INTERVAL_S = 1.0
TOLD = (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CRASHED)  # who stops a run knows it
MAX_CHARS = 120
TITLE = "gpuworkbench"
BELL = "\x07"


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that ended; both texts are foreign."""

    run_id: str
    status: RunStatus
    reason: str

    @property
    def words(self) -> str:
        """One line."""
        return f"{self.run_id} {self.status.value}" + (f": {self.reason}" if self.reason else "")


class EndsSource:
    """The source of runs that ended while it looked, for a `Watcher`: all of them so far, in order."""

    def __init__(self, runs_dir: Path, started: Callable[[], list[RunPaths]], clock: Callable[[], float]) -> None:
        """`started`: runs that may lie elsewhere."""
        self._runs_dir = runs_dir
        self._started = started
        self._clock = clock

    def __call__(self, stop: threading.Event) -> Iterator[tuple[Ended, ...]]:
        """Whenever one more ended, until `stop`."""
        live: set[Path] = set()
        ended: tuple[Ended, ...] = ()
        while not stop.is_set():
            started_s = time.monotonic()
            roots = {*run_roots(self._runs_dir), *(paths.root for paths in self._started()), *live}
            now = {root for root in roots if probe_lock(RunPaths(root).lock) is not None}
            fresh = [self._ended(root) for root in sorted(live - now) if is_run(root)]
            live = now
            told = [end for end in fresh if end.status in TOLD]
            if told:
                ended = (*ended, *told)
                yield ended
            stop.wait(max(INTERVAL_S, 10 * (time.monotonic() - started_s)))

    def _ended(self, root: Path) -> Ended:
        report = derive_status(RunPaths(root), self._clock())
        return Ended(root.name, report.status, report.reason)


def plain(text: str) -> str:
    """Printable text of one line that may stand in an escape sequence: no controls, no semicolons."""
    return safe_text(" ".join(text.split()), max_chars=MAX_CHARS).replace(";", ",")


def desktop_sequence(body: str, environ: Mapping[str, str]) -> str:
    """The escape sequence by which this terminal shows a notification."""
    is_777 = environ.get("TERM", "").startswith("rxvt") or "VTE_VERSION" in environ
    # A text of OSC 9 that begins with a digit would mean something else to ConEmu and Windows Terminal.
    sequence = f"\x1b]777;notify;{TITLE};{plain(body)}\x07" if is_777 else f"\x1b]9;{TITLE}: {plain(body)}\x07"
    if "TMUX" in environ:
        return "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    return sequence


def notify_send_command(body: str, environ: Mapping[str, str]) -> list[str] | None:
    """The command that asks this machine's desktop; None where there is none, or the person is elsewhere."""
    has_desktop = bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))
    program = shutil.which("notify-send", path=environ.get("PATH"))
    if program is None or not has_desktop or "SSH_CONNECTION" in environ:
        return None
    markup = plain(body).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return [program, f"--app-name={TITLE}", "--", TITLE, markup]


def tell(words: str, by: NotifyBy, environ: Mapping[str, str], write: Callable[[str], object]) -> None:
    """Tell it; `write` reaches the terminal. Never raises OSError."""
    if by == "bell":
        write(BELL)
    elif by == "desktop":
        command = notify_send_command(words, environ)
        if command is None:
            write(desktop_sequence(words, environ))
            return
        threading.Thread(target=_call, args=(command,), name="notify-send", daemon=True).start()


def _call(command: list[str]) -> None:
    try:
        quiet = subprocess.DEVNULL
        subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return  # a desktop that does not answer is no reason to disturb anybody
