"""What a run is doing, derived from evidence each time it is asked for and never stored.

The evidence: is the lock held, does the heartbeat advance, when did the loop last get anywhere, how does the event
log end. The kernel frees the lock of a dead trainer, so "crashed" needs nobody to have written it down.
"""

from __future__ import annotations

import statistics
import time
from enum import StrEnum
from typing import Any

from msgspec import Struct

from gpuworkbench.config.toml_io import parse_toml, read_config_file
from gpuworkbench.errors import ConfigError
from gpuworkbench.runs.create import newest_run_file
from gpuworkbench.runs.heartbeat import PHASE_EXITED, PHASE_QUEUED, Heartbeat, boot_id, read_heartbeat
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.manifest import list_checkpoints
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.tail import TAIL_BYTES, WIDE_TAIL_BYTES, Glimpse, log_end, tail_events
from gpuworkbench.runs.turns import ahead_of, describe_wait, device_of_table
from gpuworkbench.text import safe_text

STALL_MIN_S = 30.0
STALL_STEPS = 20  # of the median step time
STALL_FIRST_STEP_S = 600.0  # before an attempt's first step: compilation, first validation
SILENT_HEARTBEAT_S = 30.0  # whatever it is at, a trainer must at least beat
LAUNCH_GRACE_S = 20.0  # a trainer needs this long to import and to take the lock
LATER_BEAT_S = 2.0  # a beat this much after the last event belongs to an attempt without events


class RunStatus(StrEnum):
    """What a person is told about a run."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    STALLED = "stalled"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"
    CRASHED = "crashed"

    @property
    def is_live(self) -> bool:
        """A trainer process exists."""
        return self in _LIVE


_LIVE = frozenset({RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.STALLED})
_FINISHED = {status.value: status for status in (RunStatus.COMPLETED, RunStatus.STOPPED, RunStatus.FAILED)}


class StatusReport(Struct, frozen=True, kw_only=True):
    """A status with its evidence. Unknown values are None; texts are safe to print."""

    status: RunStatus
    pid: int | None = None  # the trainer's, while it lives
    step: int | None = None
    max_steps: int | None = None
    last_loss: float | None = None  # the newest measured training loss, in nats
    attempt: int | None = None
    reason: str = ""
    exit_code: int | None = None
    last_event_unix_s: float | None = None
    idle_s: float | None = None  # since the loop last got anywhere, while the trainer lives
    last_checkpoint_step: int | None = None
    log_end: tuple[str, ...] = ()  # of trainer.log, for crashed and failed runs


def derive_status(paths: RunPaths, now: float | None = None) -> StatusReport:
    """The run's status at `now` (seconds since 1970, default: the clock). Bounded work; never raises OSError."""
    moment = time.time() if now is None else now
    holder = probe_lock(paths.lock)
    beat = read_heartbeat(paths.heartbeat)
    events = _recent_events(paths)
    report = StatusReport(
        status=RunStatus.CRASHED,
        step=_step(events, beat if holder is not None else None),
        max_steps=_max_steps(paths, events),
        last_loss=_last_loss(events),
        attempt=max((event.attempt for event in events), default=None),
        last_event_unix_s=events[-1].time_unix_s if events else None,
        last_checkpoint_step=next((ref.step for ref in list_checkpoints(paths)), None),
    )
    if holder is not None:
        live = _live(report, holder, beat, events, moment)
        if live.status is RunStatus.QUEUED:
            return _replace(live, reason=describe_wait(ahead_of(paths, device_of_table(read_config(paths)))))
        return live
    return _dead(report, paths, beat, events, moment)


def _live(report: StatusReport, holder: int, beat: Heartbeat | None, events: list[Glimpse], now: float) -> StatusReport:
    """The lock is held: queued, paused, stalled or running."""
    idle_s = _idle_s(beat, holder, now)
    silence_s = _silence_s(beat, events, now)
    status, reason = RunStatus.RUNNING, ""
    if beat is None or (holder and beat.pid != holder):
        reason = "starting"
    elif beat.phase == PHASE_QUEUED:
        status = RunStatus.QUEUED
    elif silence_s > SILENT_HEARTBEAT_S:
        status, reason = RunStatus.STALLED, f"no sign of life for {silence_s:.0f} s"
    elif idle_s is None:
        reason = "starting"
    elif _is_paused(events):
        status = RunStatus.PAUSED
    elif idle_s > (limit_s := stall_limit_s(events)):
        status = RunStatus.STALLED
        reason = f"no progress for {idle_s:.0f} s (limit {limit_s:.0f} s)"
    return _replace(report, status=status, pid=holder or None, reason=reason, idle_s=idle_s)


def _dead(
    report: StatusReport, paths: RunPaths, beat: Heartbeat | None, events: list[Glimpse], now: float
) -> StatusReport:
    """The lock is free: finished as the log says, else crashed, else not started yet."""
    ending = events[-1] if events else None
    if ending is not None and ending.type == "run_finished" and not _later_attempt_died(ending, beat):
        status = _FINISHED.get(ending.status or "", RunStatus.FAILED)
        lines = log_end(paths.trainer_log) if status is RunStatus.FAILED else ()
        return _replace(
            report,
            status=status,
            reason=safe_text(ending.reason or "", max_chars=400),
            exit_code=ending.exit_code,
            log_end=lines,
        )
    lines = log_end(paths.trainer_log)
    if ending is None and beat is None and not lines and now - _created(paths, now) < LAUNCH_GRACE_S:
        return _replace(report, status=RunStatus.RUNNING, reason="starting")
    return _replace(report, reason=_crash_reason(beat, events, lines), log_end=lines)


def stall_limit_s(events: list[Glimpse]) -> float:
    """How long a trainer may go without progress: 20 median steps, at least 30 s; longer before its first step."""
    steps = [event for event in events if event.type == "step" and event.attempt == events[-1].attempt]
    times = [event.step_time_s for event in steps[-50:] if event.step_time_s is not None]
    typical_s = max(STALL_MIN_S, STALL_STEPS * statistics.median(times)) if times else STALL_MIN_S
    return typical_s if steps else STALL_FIRST_STEP_S


def _silence_s(beat: Heartbeat | None, events: list[Glimpse], now: float) -> float:
    """Seconds since the last beat or event: on a full disk one may come without the other."""
    signs = [events[-1].time_unix_s] if events else []
    return now - max([*signs, beat.time_unix_s] if beat is not None else signs, default=now)


def _idle_s(beat: Heartbeat | None, holder: int, now: float) -> float | None:
    """Seconds without progress: what the trainer's own monotonic clock says, plus the age of the beat."""
    if beat is None or beat.last_progress_mono_s is None or (holder and beat.pid != holder):
        return None
    return max(beat.mono_s - beat.last_progress_mono_s, 0.0) + max(now - beat.time_unix_s, 0.0)


def _is_paused(events: list[Glimpse]) -> bool:
    """The newest of the events that start or end a pause starts one."""
    for event in reversed(events):
        if event.type in ("paused", "resumed", "run_resumed", "run_started", "step", "run_finished"):
            return event.type == "paused"
    return False


def _later_attempt_died(ending: Glimpse, beat: Heartbeat | None) -> bool:
    """A beat well after the last `run_finished`, and no orderly exit: the next attempt died before its first event."""
    return beat is not None and beat.phase != PHASE_EXITED and beat.time_unix_s > ending.time_unix_s + LATER_BEAT_S


def _crash_reason(beat: Heartbeat | None, events: list[Glimpse], lines: tuple[str, ...]) -> str:
    for event in reversed(events):
        if event.type in ("run_started", "run_resumed"):
            break
        if event.type == "error" and event.message:
            return safe_text(event.message, max_chars=400)
    current_boot = boot_id()
    if beat is not None and beat.boot_id and current_boot and beat.boot_id != current_boot:
        return "the machine was restarted while the run was training"
    if lines:
        return lines[-1]
    if not events:
        return "the trainer died before its first event, without a word in its log"
    return "the trainer died without a word: killed, or out of host memory"


def _recent_events(paths: RunPaths) -> list[Glimpse]:
    """The end of the log, further back where the last 64 KiB hold no step."""
    events = tail_events(paths.events, TAIL_BYTES)
    if any(event.type == "step" for event in events):
        return events
    return tail_events(paths.events, WIDE_TAIL_BYTES)


def _step(events: list[Glimpse], beat: Heartbeat | None) -> int | None:
    step = events[-1].step if events else None
    if beat is not None and beat.last_step is not None and beat.phase != PHASE_EXITED:
        return max(beat.last_step, step or 0)
    return step


def _last_loss(events: list[Glimpse]) -> float | None:
    """The newest step's loss, leaving out what a resume took back."""
    ceiling = None
    for event in reversed(events):
        if event.type == "run_resumed" and event.from_step is not None:
            ceiling = event.from_step if ceiling is None else min(ceiling, event.from_step)
        if event.type == "step" and event.loss is not None and (ceiling is None or event.step <= ceiling):
            return event.loss
    return None


def _max_steps(paths: RunPaths, events: list[Glimpse]) -> int | None:
    """From the configuration that holds now, else from the newest start event."""
    value = read_config(paths).get("train")
    steps = value.get("max_steps") if isinstance(value, dict) else None
    if isinstance(steps, int) and not isinstance(steps, bool):
        return steps
    return next((event.max_steps for event in reversed(events) if event.max_steps is not None), None)


def read_config(paths: RunPaths) -> dict[str, Any]:
    """The newest run file as plain data, without validation; empty where it is missing or malformed."""
    try:
        path = newest_run_file(paths)
        return parse_toml(read_config_file(path), str(path))
    except ConfigError:
        return {}


def _created(paths: RunPaths, now: float) -> float:
    try:
        return min(paths.run_toml.lstat().st_mtime, now)
    except OSError:
        return 0.0


def _replace(report: StatusReport, **changes: Any) -> StatusReport:
    return StatusReport(**{**{name: getattr(report, name) for name in report.__struct_fields__}, **changes})
