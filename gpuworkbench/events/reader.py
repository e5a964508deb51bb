"""Following an event log: incremental, in bounded chunks, keeping a partial last line for the next poll."""

from __future__ import annotations

import os
from pathlib import Path

from gpuworkbench.errors import RunError
from gpuworkbench.events.codec import decode_lines
from gpuworkbench.events.log_file import MAX_LINE_BYTES, open_regular, reason
from gpuworkbench.events.schema import AnyEvent

CHUNK_BYTES = 1024 * 1024


class EventReader:
    """Reads a log from `offset` on. A log that is not there yet is an empty one.

    `offset` is the end of the last complete line handed out. `replacements` counts how often the log was found
    truncated or replaced by another file: the reader then starts again at 0 and its caller must forget what it had.
    Raises RunError where something else than a regular file lies in the log's place.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self.replacements = 0
        self._fd: int | None = None
        self._identity: tuple[int, int] | None = None
        self._partial_bytes = 0  # how far beyond `offset` was read without meeting a newline
        self._skipping = False  # inside a line over MAX_LINE_BYTES

    def poll(self, max_bytes: int = CHUNK_BYTES) -> list[AnyEvent]:
        """The events of the next chunk. Empty also where the chunk held only unknown ones: see `poll_lines`."""
        return decode_lines(self.poll_lines(max_bytes))

    def poll_lines(self, max_bytes: int = CHUNK_BYTES) -> bytes:
        """The next complete lines, as they stand in the log; about `max_bytes` at most, empty at the log's end."""
        while True:
            if not self._is_open():
                return b""
            assert self._fd is not None
            want = max_bytes + self._partial_bytes
            try:
                data = os.pread(self._fd, want, self.offset)
            except OSError as error:
                raise RunError(f"cannot read {self.path}: {reason(error)}", "check the disk") from error
            if self._skipping:
                if not self._skip_to_newline(data):
                    return b""
                continue
            end = data.rfind(b"\n") + 1
            if end:
                self.offset += end
                self._partial_bytes = 0
                return data if end == len(data) else data[:end]
            if len(data) < want:
                self._partial_bytes = len(data)
                return b""
            self._partial_bytes = len(data)
            if self._partial_bytes > MAX_LINE_BYTES:
                self._skipping = True

    def at_end(self) -> bool:
        """Whether no complete line was waiting at the last poll (a partial one may)."""
        return self._fd is None or os.fstat(self._fd).st_size <= self.offset + self._partial_bytes

    def close(self) -> None:
        """Close the log; a later poll opens it again at `offset`."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _skip_to_newline(self, data: bytes) -> bool:
        """Advance within an overlong line; True where more is to be read at once."""
        end = data.find(b"\n") + 1
        self._partial_bytes = 0
        if not end:
            self.offset += len(data)
            return bool(data)
        self.offset += end
        self._skipping = False
        return True

    def _is_open(self) -> bool:
        """Open the log, or open it again where its name now leads to another or a shorter file."""
        try:
            status = os.stat(self.path)
        except (OSError, ValueError):
            status = None  # deleted: what is open can still be read to its end
        if self._fd is not None and status is not None:
            if (status.st_dev, status.st_ino) == self._identity and status.st_size >= self.offset:
                return True
            self.close()
        if self._fd is None:
            self._fd = open_regular(self.path)
            if self._fd is None:
                return False
            self._note_identity(os.fstat(self._fd))
        return True

    def _note_identity(self, status: os.stat_result) -> None:
        identity = (status.st_dev, status.st_ino)
        if (self._identity is not None and identity != self._identity) or status.st_size < self.offset:
            self.replacements += 1
            self.offset = 0
            self._partial_bytes = 0
            self._skipping = False
        self._identity = identity


def read_all(path: Path) -> list[AnyEvent]:
    """Every event of a log, in memory: for tests and small logs. Raises RunError."""
    reader = EventReader(path)
    events: list[AnyEvent] = []
    try:
        while lines := reader.poll_lines():
            events += decode_lines(lines)
    finally:
        reader.close()
    return events
