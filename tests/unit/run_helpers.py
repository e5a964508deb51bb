"""Shared by the tests of runs/: event lines, and real processes that hold a lock."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from gpuworkbench.runs.heartbeat import Heartbeat
from gpuworkbench.runs.paths import RunPaths

HOLD_LOCK = """
import sys, time
from pathlib import Path
from gpuworkbench.errors import RunLockedError
from gpuworkbench.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
sys.stdin.readline()
try:
    lock.acquire()
except RunLockedError as error:
    print("lost", error.line(), flush=True)
    sys.exit(3)
print("won", flush=True)
sys.stdin.readline()
"""


def start_holder(run: RunPaths) -> subprocess.Popen[str]:
    """A process that takes the lock after one line on stdin and holds it until the next."""
    command = [sys.executable, "-c", HOLD_LOCK, str(run.lock)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process: subprocess.Popen[str]) -> None:
    """One line to the process."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    """One line from the process."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str], *, kill: bool = False) -> None:
    """End the process and close its pipes."""
    if kill:
        process.kill()
    process.communicate()


def write_events(run: RunPaths, events: Iterable[Mapping[str, Any]], end_with: bytes = b"") -> None:
    """Append events; the envelope's fields have defaults."""
    with run.events.open("ab") as stream:
        for seq, event in enumerate(events):
            envelope = {"v": 1, "seq": seq, "time_unix_s": 1000.0, "mono_s": 1.0, "attempt": 1, "step": 0}
            stream.write(json.dumps({**envelope, **event}).encode() + b"\n")
        stream.write(end_with)


def step(number: int, loss: float | None = 2.0, step_time_s: float = 0.1, **fields: Any) -> dict[str, Any]:
    """A step event."""
    return {"type": "step", "step": number, "loss": loss, "step_time_s": step_time_s, **fields}


def beat(
    pid: int, *, age_s: float = 0.0, idle_s: float | None = 0.0, now: float | None = None, **more: Any
) -> Heartbeat:
    """A heartbeat that is `age_s` old and whose loop had got nowhere for `idle_s` when it was written."""
    unix_s = (time.time() if now is None else now) - age_s
    progress = None if idle_s is None else 500.0 - idle_s
    unix_progress = None if idle_s is None else unix_s - idle_s
    return Heartbeat(
        pid=pid,
        time_unix_s=unix_s,
        mono_s=500.0,
        last_progress_mono_s=progress,
        last_progress_unix_s=unix_progress,
        **more,
    )
