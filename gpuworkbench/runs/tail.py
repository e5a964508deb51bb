"""The end of an event log, read in bounded time: what a status needs, without replaying the run.

`events/reader.py` is the way to read a log as a whole; this looks only at its last lines, and tolerates anything.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from gpuworkbench.io.reading import read_regular_file, read_tail
from gpuworkbench.text import safe_text

TAIL_BYTES = 64 * 1024
MAX_ATTEMPT = 999_999_998  # a damaged line may say anything; file names have nine digits
WIDE_TAIL_BYTES = 2 * 1024 * 1024
ATTEMPT_MARK = "=== attempt "  # begins the line that begins an attempt in trainer.log


class Glimpse(Struct, frozen=True, kw_only=True):
    """The fields of any event that a status or an acknowledgement needs; unknown ones are skipped."""

    type: str
    attempt: int
    step: int
    time_unix_s: float
    pid: int | None = None
    from_step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    step_time_s: float | None = None
    status: str | None = None
    reason: str | None = None
    exit_code: int | None = None
    message: str | None = None
    id: str | None = None
    command: str | None = None
    code: str | None = None
    ok: bool | None = None
    kind: str | None = None
    fix: dict[str, bool | int | str] | None = None


_decoder = msgspec.json.Decoder(Glimpse)


def decode_glimpse(line: bytes) -> Glimpse | None:
    """One line of the log, or None where it is not an event."""
    try:
        return _decoder.decode(line)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors, and so are invalid UTF-8 and digits
        return None


def tail_events(path: Path, max_bytes: int = TAIL_BYTES) -> list[Glimpse]:
    """The events in the last `max_bytes` of a log, oldest first. A torn first or last line is left out."""
    try:
        tail = read_tail(path, max_bytes)
    except OSError:
        return []
    lines = tail.data.split(b"\n")[:-1]  # what follows the last newline is not written yet
    if tail.offset:
        lines = lines[1:]
    return [glimpse for line in lines if line and (glimpse := decode_glimpse(line)) is not None]


def last_attempt(path: Path) -> int | None:
    """The number of the newest attempt in the log, None without events."""
    events = tail_events(path) or tail_events(path, WIDE_TAIL_BYTES)
    return max((event.attempt for event in events if 0 < event.attempt <= MAX_ATTEMPT), default=None)


def log_end(path: Path, max_lines: int = 20, max_bytes: int = 16 * 1024) -> tuple[str, ...]:
    """The newest attempt's last lines that say anything, safe to print; empty where there are none or no log."""
    try:
        data = read_tail(path, max_bytes).data
    except OSError:
        return ()
    lines = [line.strip() for line in data.decode("utf-8", "replace").replace("\r", "\n").split("\n")]
    marks = [number for number, line in enumerate(lines) if line.startswith(ATTEMPT_MARK)]
    newest = lines[marks[-1] + 1 :] if marks else lines
    return tuple(safe_text(line, max_chars=500) for line in newest if line)[-max_lines:]


def read_json_object(path: Path, max_bytes: int) -> dict[str, object] | None:
    """A small JSON object, or None where it is missing, too large or something else."""
    try:
        value = msgspec.json.decode(read_regular_file(path, max_bytes))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
