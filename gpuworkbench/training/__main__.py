"""`python -m gpuworkbench.training RUN_DIR`: one attempt at a run, from lock to exit code.

The launcher starts this in a session of its own with stdout and stderr in trainer.log. Whatever happens, the
attempt's last event is `run_finished` with the exit code that the process returns (unless it is killed outright).
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path

from gpuworkbench.errors import ExitCode, RunError, WorkbenchError
from gpuworkbench.events.schema import Error, RunFinished
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.io import discard_leftovers
from gpuworkbench.runs.control import discard_commands_before
from gpuworkbench.runs.heartbeat import HeartbeatWriter
from gpuworkbench.runs.lock import RunLock
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.tail import last_attempt
from gpuworkbench.training.controls import Signals


def main(arguments: list[str]) -> int:
    """Run one attempt; returns the exit code."""
    if len(arguments) != 1:
        print("gpuworkbench.training: give one run directory", file=sys.stderr)
        return ExitCode.USAGE
    paths = RunPaths(Path(arguments[0]).resolve())
    signals = Signals()
    signals.install()
    try:
        if not paths.root.is_dir():
            raise RunError(f"{paths.root}: no such run directory", "`gpuworkbench runs` lists them")
        lock = RunLock(paths.lock)
        lock.acquire()
    except WorkbenchError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    return _attempt(paths, signals)


def _attempt(paths: RunPaths, signals: Signals) -> int:
    from gpuworkbench.training.attempt import run_attempt

    discard_commands_before(paths, time.time())  # a stop meant for a trainer that died first
    discard_leftovers(paths.checkpoints)
    attempt = (last_attempt(paths.events) or 0) + 1
    events = EventWriter(paths.events, attempt=attempt)
    heartbeat = HeartbeatWriter(paths.heartbeat)
    heartbeat.start()
    step = 0
    try:
        outcome = run_attempt(paths, events, heartbeat, signals)
        step, status, code, reason = outcome
    except WorkbenchError as error:
        step, status, code, reason = heartbeat.last_step, "failed", error.exit_code, error.line()
        events.emit(Error, step=step, kind=error.kind, message=error.message, hint=error.hint)
        print(error.line(), file=sys.stderr)
    except Exception as error:  # noqa: BLE001 - the last line of defence: the run's log must say why it ended
        step, status, code = heartbeat.last_step, "failed", ExitCode.FAILED
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        events.emit(Error, step=step, kind="internal", message=reason, hint="the traceback is in trainer.log")
        traceback.print_exc()
    events.emit(RunFinished, step=step, status=status, exit_code=int(code), reason=reason)
    events.sync()
    events.close()
    heartbeat.stop()
    return int(code)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # No interpreter teardown: daemon threads and the card's context are ended by the kernel, and the code is certain.
    os._exit(code)
