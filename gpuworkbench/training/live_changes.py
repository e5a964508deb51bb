"""Live changes that the checkpoint of the same step may not hold, read back from the run's own log.

A checkpoint of a step is never written twice, so what is changed at a step that is saved already (a run that is
paused there, or one that has just resumed) is in the log only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpuworkbench.events.codec import decode_line
from gpuworkbench.events.log_file import lines_backward, open_regular
from gpuworkbench.events.schema import (
    AnyEvent,
    ConfigChanged,
    PhaseChanged,
    RunResumed,
    RunStarted,
)

_ATTEMPT_BEGINS = (RunStarted, RunResumed, PhaseChanged)  # the last of an attempt's first events is a phase_changed


def live_changes_at(log: Path, step: int) -> dict[str, Any]:
    """Key to newest value of what changed at `step` in the newest attempt.

    Whether the checkpoint holds a change already cannot be told from the log, since checkpoints are written behind
    training; to make the change again does no harm. Call it before this attempt's first event. Raises RunError where
    the log is not a regular file.
    """
    changes: dict[str, Any] = {}
    for event in _backward(log):
        if isinstance(event, _ATTEMPT_BEGINS):
            break
        if isinstance(event, ConfigChanged) and event.step == step:
            changes.setdefault(event.key, event.new)
    return changes


def _backward(log: Path) -> Iterator[AnyEvent]:
    fd = open_regular(log)
    if fd is None:
        return
    try:
        for line in lines_backward(fd, os.fstat(fd).st_size):
            event = decode_line(line)
            if event is not None:
                yield event
    finally:
        os.close(fd)
