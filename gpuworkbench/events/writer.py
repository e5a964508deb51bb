"""The trainer's side of the event log: one os.write a line, safe between threads, never a reason to stop training."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gpuworkbench.events import schema
from gpuworkbench.events.codec import encode_line, holds_nonfinite, plain
from gpuworkbench.events.log_file import ends_torn, last_seq, reason
from gpuworkbench.events.schema import EVENT_VERSION, Event
from gpuworkbench.io import REAL_FILES, Files

E = TypeVar("E", bound=Event)
MAX_PENDING_BYTES = 4 * 1024 * 1024
_FINITE_TYPES = frozenset({str, int, bool, type(None)})
# What a long outage gives up first: the rest (checkpoints, evals, attempts, errors) is what a resume relies on.
_BULK = (schema.Step, schema.Memory, schema.Offload, schema.MicroCorrection)


@dataclass(frozen=True, slots=True)
class _Line:
    data: bytes
    is_bulk: bool


class EventWriter:
    """Appends events to `path`; `attempt` and `seq` are filled in here.

    A full disk does not stop training: unwritten lines wait (at most `MAX_PENDING_BYTES` of them, bulk lines dropped
    first) and are written with the next event, then a `warning` says how long the log was out and what was lost.
    Not for signal handlers: `emit` takes a lock.
    """

    def __init__(
        self,
        path: Path,
        attempt: int,
        files: Files = REAL_FILES,
        *,
        unix_clock: Callable[[], float] = time.time,
        mono_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open or create the log, ending a torn last line. Raises RunError (not a regular file) and OSError."""
        self.path = path
        self.attempt = attempt
        self._files = files
        self._unix_clock = unix_clock
        self._mono_clock = mono_clock
        self._lock = threading.Lock()
        self._pending: deque[_Line] = deque()
        self._pending_bytes = 0
        self._remainder = b""  # the rest of a line that the kernel took only a part of
        self._lost_events = 0
        self._outage_since: float | None = None
        self._outage_reason = ""
        self._is_durable = True
        self._last_step = 0
        if ends_torn(path):
            self._remainder = b"\n"
        self._fd = files.open_append(path)
        try:
            self._flush()
            self._next_seq = last_seq(path) + 1
        except BaseException:
            os.close(self._fd)
            raise

    def emit(self, cls: type[E], step: int, **fields: Any) -> E:
        """Write one event and return it as its readers will see it: NaN and Inf are `None`, scalars are Python's."""
        _make_plain(fields)
        with self._lock:
            self._last_step = step
            event = self._append(cls, step, fields)
            self._flush()
            if self._outage_since is not None and self._is_caught_up():
                self._report_outage(step)
        return event

    def sync(self) -> bool:
        """Make every event so far durable; False where that failed. A failed fsync is not tried again."""
        with self._lock:
            self._flush()
            if not self._is_durable or not self._is_caught_up():
                return False
            try:
                self._files.fsync(self._fd)
            except OSError as error:
                self._is_durable = False
                self._append(
                    schema.Warning,
                    self._last_step,
                    {
                        "code": "events_sync_failed",
                        "message": f"the event log could not be made durable: {reason(error)}",
                        "hint": "checkpoints are synced on their own; check the disk",
                    },
                )
                self._flush()
                return False
            return True

    def close(self) -> None:
        """Write what still waits, where that is possible, and close the log."""
        with self._lock:
            if self._fd < 0:
                return
            self._flush()
            fd, self._fd = self._fd, -1
            try:
                self._files.close(fd)
            except OSError:
                return  # close(2) reports a late write error; there is no one left to tell

    def _append(self, cls: type[E], step: int, fields: dict[str, Any]) -> E:
        event = cls(
            v=EVENT_VERSION,
            seq=self._next_seq,
            time_unix_s=self._unix_clock(),
            mono_s=self._mono_clock(),
            attempt=self.attempt,
            step=step,
            **fields,
        )
        self._next_seq += 1
        line = encode_line(event)
        self._pending.append(_Line(line, cls in _BULK))
        self._pending_bytes += len(line)
        return event

    def _is_caught_up(self) -> bool:
        return not self._pending and not self._remainder

    def _flush(self) -> None:
        """Write the waiting lines, one write(2) each; an OSError leaves the rest waiting."""
        try:
            while not self._is_caught_up():
                if not self._remainder:
                    line = self._pending.popleft().data
                    self._pending_bytes -= len(line)
                    self._remainder = line
                written = self._files.write(self._fd, self._remainder)
                if written <= 0:
                    raise OSError(f"write returned {written}")
                self._remainder = self._remainder[written:]
        except OSError as error:
            if self._outage_since is None:
                self._outage_since = self._mono_clock()
            self._outage_reason = reason(error)
            if self._pending_bytes > MAX_PENDING_BYTES:
                self._drop()

    def _drop(self) -> None:
        """Give up the oldest waiting lines down to half of the bound, bulk lines before others."""
        for only_bulk in (True, False):
            kept: deque[_Line] = deque()
            for line in self._pending:
                if self._pending_bytes > MAX_PENDING_BYTES // 2 and (line.is_bulk or not only_bulk):
                    self._pending_bytes -= len(line.data)
                    self._lost_events += 1
                else:
                    kept.append(line)
            self._pending = kept

    def _report_outage(self, step: int) -> None:
        assert self._outage_since is not None
        seconds = self._mono_clock() - self._outage_since
        lost = f"{self._lost_events} events were lost" if self._lost_events else "no event was lost"
        message = f"the event log could not be written for {seconds:.1f} s ({self._outage_reason}); {lost}"
        self._outage_since, self._lost_events = None, 0
        hint = "free space on the disk that holds the runs"
        self._append(schema.Warning, step, {"code": "events_not_written", "message": message, "hint": hint})
        self._flush()


def _make_plain(fields: dict[str, Any]) -> None:
    """Replace NaN and Inf by `None`, name them in `nonfinite`, and turn numpy and torch scalars into Python's."""
    nonfinite: tuple[str, ...] = ()
    for name, value in fields.items():
        kind = type(value)
        if kind in _FINITE_TYPES or (kind is float and math.isfinite(value)):
            continue
        number = plain(value)
        is_nonfinite = holds_nonfinite(number)
        if is_nonfinite:
            nonfinite += (name,)
        fields[name] = None if is_nonfinite and isinstance(number, float) else number
    if nonfinite:
        fields["nonfinite"] = nonfinite
