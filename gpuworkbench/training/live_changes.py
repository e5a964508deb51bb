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
    CheckpointSaved,
    ConfigChanged,
    PhaseChanged,
    RunResumed,
    RunStarted,
)


def live_changes_at(log: Path, step: int) -> dict[str, Any]:
    """Key to newest value of what changed at `step`, in this attempt and in those before it that began there too.

    Whether the checkpoint holds a change already cannot be told from the log, since checkpoints are written behind
    training; to make the change again does no harm. What a resume configured anew (its `config_changed` events stand
    between `run_resumed` and the first `phase_changed`) counts more than older live changes of the same key. Call it
    after this attempt's first events. Raises RunError where the log is not a regular file.
    """
    changes: dict[str, Any] = {}
    configured: set[str] = set()
    is_announcing = False
    for event in _backward(log):
        if isinstance(event, RunStarted | RunResumed):
            if event.from_step != step:
                break
            is_announcing = False
        elif isinstance(event, PhaseChanged) and event.from_phase is None:
            is_announcing = True
        elif isinstance(event, ConfigChanged) and is_announcing:
            configured.add(event.key)
        elif isinstance(event, ConfigChanged) and event.step == step and event.key not in configured:
            changes.setdefault(event.key, event.new)
    return changes


def acknowledged_step(log: Path) -> int | None:
    """The step of the newest checkpoint that the log acknowledges, None without one. Reads the log backward."""
    return next((event.step for event in _backward(log) if isinstance(event, CheckpointSaved)), None)


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
