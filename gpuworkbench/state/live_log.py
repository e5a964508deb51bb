"""A run's log as something to look at: opened through its index, then followed, with one frozen state at any time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpuworkbench.events.codec import decode_lines
from gpuworkbench.events.index import best_index, save_cached_index
from gpuworkbench.events.reader import EventReader
from gpuworkbench.events.schema import AnyEvent
from gpuworkbench.state.reducer import Reducer
from gpuworkbench.state.run_state import RunState

# Beyond so much replay, an index of one's own is worth its file.
CACHE_AFTER_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """What one poll found: the log's lines as they are, and the events on them that this version knows.

    `is_restart`: the log was truncated or replaced; what was known before is void.
    """

    lines: bytes
    events: list[AnyEvent]
    is_restart: bool = False


class LiveLog:
    """Reader and reducer together. Not for two threads at once; the states it hands out are frozen."""

    def __init__(self, path: Path, *, use_index: bool = True) -> None:
        """Start before the first event, or (`use_index`) where the best index of this log ends. Raises RunError."""
        self.path = path
        self._is_kept = False
        fold, offset = best_index(path) if use_index else (None, 0)
        self._start_bytes = offset
        self._reader = EventReader(path, offset)
        self._reducer = Reducer(fold)

    def poll(self) -> Batch:
        """Take in the log's next chunk (about a megabyte); an empty batch at its end. Raises RunError."""
        replacements = self._reader.replacements
        lines = self._reader.poll_lines()
        events = decode_lines(lines)
        is_restart = self._reader.replacements != replacements
        if is_restart:
            self._reducer = Reducer()
        self._reducer.apply(events)
        return Batch(lines, events, is_restart)

    def catch_up(self) -> RunState:
        """Take in all that is there now. A long replay leaves an index in the user's cache for the next time."""
        while self.poll().lines:
            pass
        self.keep_index()
        return self.state()

    def keep_index(self) -> None:
        """Leave an index in the user's cache where this replay was long; once, at the log's end."""
        if not self._is_kept and self._reader.offset - self._start_bytes > CACHE_AFTER_BYTES:
            self._is_kept = True
            save_cached_index(self.path, self._reducer.fold, self._reader.offset)

    def state(self) -> RunState:
        """The run as far as it was taken in."""
        return self._reducer.snapshot()

    def close(self) -> None:
        """Close the log."""
        self._reader.close()
