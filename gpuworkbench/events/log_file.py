"""Opening an event log without being trapped by what lies in its place, and reading its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gpuworkbench.errors import RunError
from gpuworkbench.events.codec import decode_line
from gpuworkbench.events.schema import AnyEvent
from gpuworkbench.io import reading

BACKWARD_CHUNK_BYTES = 64 * 1024
MAX_LINE_BYTES = 8 * 1024 * 1024


class _Seq(msgspec.Struct):
    seq: int
    type: str


_SEQ_DECODER = msgspec.json.Decoder(_Seq)


def open_regular(path: Path) -> int | None:
    """A read-only descriptor of a regular file, or `None` where there is no file yet.

    Raises RunError for anything else in its place (FIFO, device, directory, unreadable); never blocks.
    """
    try:
        return reading.open_regular(path, follow_symlinks=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {reason(error)}", "check that it is a run directory of yours") from error


def reason(error: Exception) -> str:
    """What the system said, without the path that `str(OSError)` repeats."""
    return getattr(error, "strerror", None) or str(error)


def lines_backward(fd: int, end: int) -> Iterator[bytes]:
    """Complete lines before offset `end`, last one first, without newlines, in bounded memory.

    What follows the last newline is not a complete line and is left out; so is a line over MAX_LINE_BYTES.
    """
    carry = b""  # the beginning of a line whose start lies further ahead
    seen_newline = overlong = False
    while end > 0:
        begin = max(0, end - BACKWARD_CHUNK_BYTES)
        pieces = (os.pread(fd, end - begin, begin) + (carry if seen_newline else b"")).split(b"\n")
        end = begin
        if not seen_newline:
            if len(pieces) == 1:
                continue
            pieces.pop()
            seen_newline = True
        complete = pieces[1:]
        if complete and overlong:
            complete.pop()
            overlong = False
        yield from reversed(complete)
        carry = pieces[0]
        if len(carry) > MAX_LINE_BYTES:
            carry, overlong = b"", True
    if seen_newline and not overlong:
        yield carry


def tail_events(path: Path, n: int) -> list[AnyEvent]:
    """The last `n` events of a log, oldest first, read from its end. Raises RunError."""
    fd = open_regular(path)
    if fd is None or n <= 0:
        return []
    found: list[AnyEvent] = []
    try:
        for line in lines_backward(fd, os.fstat(fd).st_size):
            event = decode_line(line)
            if event is not None:
                found.append(event)
                if len(found) == n:
                    break
    finally:
        os.close(fd)
    return found[::-1]


def last_seq(path: Path) -> int:
    """`seq` of the last complete event, of whatever type or version; -1 where there is none. Raises RunError."""
    fd = open_regular(path)
    if fd is None:
        return -1
    try:
        for line in lines_backward(fd, os.fstat(fd).st_size):
            try:
                seq = _SEQ_DECODER.decode(line).seq
            except (ValueError, RecursionError):
                continue
            if 0 <= seq < 2**52:
                return seq
    finally:
        os.close(fd)
    return -1


def ends_torn(path: Path) -> bool:
    """Whether the log's last byte is not a newline. Raises RunError."""
    fd = open_regular(path)
    if fd is None:
        return False
    try:
        size = os.fstat(fd).st_size
        return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
    finally:
        os.close(fd)
