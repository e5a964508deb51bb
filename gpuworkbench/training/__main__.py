"""`python -m gpuworkbench.training RUN_DIR [RUN_FILE] [--queue | --share]`: one attempt, from lock to exit code.

The launcher starts this in a session of its own with stdout and stderr in trainer.log. Whatever happens, the
attempt's last event is `run_finished` with the exit code that the process returns (unless it is killed outright).
RUN_FILE is the name of the run.toml or run.<attempt>.toml that the launcher checked; without it the newest holds.
`--queue` waits until the run's device is free, `--share` uses a card beside others.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from gpuworkbench.errors import DeviceBusyError, ExitCode, RunError, RunLockedError, WorkbenchError
from gpuworkbench.events.schema import Error, RunFinished
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.io import discard_leftovers
from gpuworkbench.io.atomic import TEMPORARY_PREFIX
from gpuworkbench.runs.control import discard_commands_before
from gpuworkbench.runs.heartbeat import PHASE_QUEUED, HeartbeatWriter
from gpuworkbench.runs.lock import RunLock
from gpuworkbench.runs.manifest import list_checkpoints
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.tail import ATTEMPT_MARK, last_attempt, tail_events
from gpuworkbench.runs.turns import Turn
from gpuworkbench.training.controls import Signals
from gpuworkbench.training.waiting import CLAIMS, Claim, take_turn, wait_for_turn


class Ending(NamedTuple):
    """The fields of `run_finished`."""

    step: int
    status: str
    exit_code: int
    reason: str


def main(arguments: list[str]) -> int:
    """Run one attempt; returns the exit code."""
    names = [argument for argument in arguments if argument not in CLAIMS]
    claim = next((CLAIMS[argument] for argument in arguments if argument in CLAIMS), Claim.ALONE)
    if len(names) not in (1, 2):
        _log("gpuworkbench.training: give a run directory, and no more than a run file's name")
        return ExitCode.USAGE
    paths = RunPaths(Path(names[0]).resolve())
    run_file = names[1] if len(names) == 2 else None
    turn: Turn | None = None
    signals = Signals()
    signals.install()
    started_unix_s = time.time()
    try:
        if not paths.root.is_dir():
            raise RunError(f"{paths.root}: no such run directory", "`gpuworkbench runs` lists them")
        RunLock(paths.lock).acquire()
        turn = take_turn(paths, run_file, claim, _log)  # before anything is written: a refusal changes nothing
        discard_commands_before(paths, started_unix_s)  # a stop meant for a trainer that died first
        discard_leftovers(paths.checkpoints)
        _discard_own_leftovers(paths)
        return _attempt(paths, signals, run_file, turn if claim is Claim.QUEUED else None)
    except WorkbenchError as error:
        is_others_log = isinstance(error, RunLockedError) and not isinstance(error, DeviceBusyError)
        if not (is_others_log and _is_stderr(paths.trainer_log)):
            _log(error.line())
        return error.exit_code
    finally:
        if turn is not None:
            turn.end()


def _log(text: str) -> None:
    """A line in trainer.log; a full disk costs the line, not the run."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _discard_own_leftovers(paths: RunPaths) -> None:
    """Remove the temporary files that killed trainers left; launchers write here too, so only a trainer's own."""
    for owned in (paths.heartbeat, paths.env, paths.events_index, paths.undo):
        for leftover in paths.root.glob(f"{TEMPORARY_PREFIX}*-{owned.name}"):
            with contextlib.suppress(OSError):
                leftover.unlink()


def _is_stderr(log: Path) -> bool:
    """Whether stderr goes to `log`, which belongs to the trainer that holds the lock."""
    try:
        return os.path.samestat(os.fstat(2), os.stat(log))
    except OSError:
        return False


def _attempt(paths: RunPaths, signals: Signals, run_file: str | None, queued: Turn | None = None) -> int:
    """One attempt; with `queued` it first waits for that turn."""
    attempt = (last_attempt(paths.events) or 0) + 1
    _log(f"{ATTEMPT_MARK}{attempt}, process {os.getpid()}")
    try:
        events = EventWriter(paths.events, attempt=attempt)
    except OSError as error:
        raise WorkbenchError(f"{paths.events} cannot be written: {error.strerror or error}", "check the disk") from None
    heartbeat = HeartbeatWriter(paths.heartbeat)
    heartbeat.set_phase(PHASE_QUEUED if queued is not None else None)
    heartbeat.start()
    ending = _train(paths, events, heartbeat, signals, run_file, queued=queued)
    events.emit(
        RunFinished, step=ending.step, status=ending.status, exit_code=int(ending.exit_code), reason=ending.reason
    )
    events.sync()
    events.close()
    heartbeat.stop()
    return int(ending.exit_code)


def _train(
    paths: RunPaths,
    events: EventWriter,
    heartbeat: HeartbeatWriter,
    signals: Signals,
    run_file: str | None,
    *,
    queued: Turn | None,
) -> Ending:
    """The attempt and how it ended; a failure has its `error` event and its words in trainer.log."""
    try:
        if queued is not None:
            step = _step_reached(paths, heartbeat)
            stopped = wait_for_turn(queued, events, signals, step)
            if stopped is not None:
                return Ending(step, "stopped", ExitCode.STOPPED, f"{stopped} in the queue")
            heartbeat.set_phase(None)
        from gpuworkbench.training.attempt import run_attempt

        return Ending(*run_attempt(paths, events, heartbeat, signals, run_file))
    except WorkbenchError as error:
        step = _step_reached(paths, heartbeat)
        events.emit(Error, step=step, kind=error.kind, message=error.message, hint=error.hint)
        _log(error.line())
        return Ending(step, "failed", error.exit_code, error.line())
    except Exception as error:  # noqa: BLE001 - the last line of defence: the run's log must say why it ended
        kind = "io" if isinstance(error, OSError) else "internal"
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        step = _step_reached(paths, heartbeat)
        events.emit(Error, step=step, kind=kind, message=reason, hint="the traceback is in trainer.log")
        _log(traceback.format_exc())
        return Ending(step, "failed", ExitCode.FAILED, reason)


def _step_reached(paths: RunPaths, heartbeat: HeartbeatWriter) -> int:
    """The step of the last progress; before any, that of the newest checkpoint, else what earlier attempts reached."""
    saved = next((reference.step for reference in list_checkpoints(paths)), None)
    logged = next((event.step for event in reversed(tail_events(paths.events))), 0)
    return heartbeat.last_step or (logged if saved is None else saved)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # No interpreter teardown: daemon threads and the card's context are ended by the kernel, and the code is certain.
    os._exit(code)
