"""Live changes that were made after the last checkpoint of the same step, read back from the run's own log.

A checkpoint of a step is never written twice, so what is changed at a step that is saved already (a run that is
paused there, or one that has just resumed) is in the log only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpuworkbench.events.codec import decode_line
from gpuworkbench.events.log_file import lines_backward, open_regular
from gpuworkbench.events.schema import (
    AnyEvent,
    CheckpointSaved,
    ConfigChanged,
    PhaseChanged,
    RunResumed,
    RunStarted,
)

_ATTEMPT_BEGINS = (RunStarted, RunResumed, PhaseChanged)  # the last of an attempt's first events is a phase_changed


class LiveChange(NamedTuple):
    """A key and its new value."""

    key: str
    value: Any


def live_changes_since_checkpoint(log: Path, step: int) -> list[LiveChange]:
    """Changes at `step` that came after its checkpoint in the newest attempt, oldest first.

    Call it before this attempt's first event. Raises RunError where the log is not a regular file.
    """
    changes = []
    for event in _backward(log):
        if isinstance(event, _ATTEMPT_BEGINS) or (isinstance(event, CheckpointSaved) and event.step == step):
            break
        if isinstance(event, ConfigChanged) and event.step == step:
            changes.append(LiveChange(event.key, event.new))
    return changes[::-1]


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
