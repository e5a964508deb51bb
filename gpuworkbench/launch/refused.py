"""What was made for an attempt that its trainer refused before it began goes again: nothing is left behind."""

from __future__ import annotations

from pathlib import Path

from gpuworkbench.errors import ExitCode
from gpuworkbench.runs.create import discard_run
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.tail import log_end, tail_events

REFUSALS = frozenset({ExitCode.USAGE, ExitCode.LOCKED, ExitCode.DOES_NOT_FIT})
# What an attempt may write without having begun: its commands while it waited in the queue are answered too.
_NOT_BEGUN = frozenset({"error", "run_finished", "control_ack"})


def has_begun(paths: RunPaths) -> bool:
    """Whether the newest attempt in the log got further than to an error."""
    events = tail_events(paths.events)
    newest = max((event.attempt for event in events), default=None)
    return any(event.attempt == newest and event.type not in _NOT_BEGUN for event in events)


def discard_refused(paths: RunPaths, run_file: Path, code: int, *, is_new_run: bool, is_new_file: bool) -> bool:
    """Take back the run, or its run file, after a trainer that ended with `code`; False where it was no refusal.

    A trainer that found its run or its card locked has written no event: the newest attempt is an older one.
    Raises RunError where the run is being trained.
    """
    if code not in REFUSALS or (code != ExitCode.LOCKED and has_begun(paths)):
        return False
    if is_new_run:
        discard_run(paths)
    elif is_new_file:
        run_file.unlink(missing_ok=True)
    return True


def refusal_line(paths: RunPaths) -> str:
    """Why the trainer refused: the error of its log, else the last of its words."""
    errors = [event for event in tail_events(paths.events) if event.type in ("error", "run_finished")]
    reason = next((event.reason for event in reversed(errors) if event.reason), None)
    reason = reason or next((event.message for event in reversed(errors) if event.message), None)
    return reason or next(iter(log_end(paths.trainer_log)[-1:]), "the trainer refused to start without a word")
