"""The two streams of a headless run: lines for people, a progress line redrawn in place, raw JSON lines.

A reader that goes away (`| head`) never ends a run: the stream is then quietly given up.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from collections.abc import Callable, Sequence
from typing import TextIO

from gpuworkbench.text import cell_width

_COLOURS = {"good": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_RESET = "\x1b[0m"
_CLEAR_LINE = "\r\x1b[K"


def wants_color(is_terminal: bool) -> bool:
    """Colour on a terminal, unless NO_COLOR is set (https://no-color.org) or the terminal is dumb."""
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width() -> int:
    """Columns of the terminal; 80 where that is unknown."""
    return shutil.get_terminal_size((80, 24)).columns


def fit_parts(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Join parts with two blanks, leaving out those of the highest number first until the line fits."""
    kept = list(parts)
    while cell_width(line := "  ".join(text for _, text in kept)) > width and len(kept) > 1:
        kept.remove(max(kept, key=lambda part: part[0]))
    while cell_width(line) > width:
        line = line[:-1]
    return line


class OutStream:
    """A text stream that survives its reader and its encoding."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_open = True

    def write_text(self, text: str) -> None:
        """Write and flush printable text; what the stream's encoding lacks is escaped."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        printable = text.encode(encoding, "backslashreplace").decode(encoding)
        self._guarded(lambda: self._stream.write(printable))

    def write_bytes(self, data: bytes) -> None:
        """Write and flush bytes as they are."""
        binary = getattr(self._stream, "buffer", None)
        if binary is not None:
            self._guarded(lambda: binary.write(data))
        else:
            self._guarded(lambda: self._stream.write(data.decode("utf-8", "replace")))

    def _guarded(self, write: Callable[[], object]) -> None:
        if not self.is_open:
            return
        try:
            write()
            self._stream.flush()
        except (OSError, ValueError) as error:
            self.is_open = False  # ValueError: the stream is closed
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                self._discard_rest()

    def _discard_rest(self) -> None:
        """Point the descriptor at /dev/null, or the interpreter complains when it flushes at exit."""
        with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.dup2(null, self._stream.fileno())
            finally:
                os.close(null)


class People:
    """Lines for people, with at most one progress line below them."""

    def __init__(self, stream: OutStream, *, is_terminal: bool, color: bool, width: Callable[[], int]) -> None:
        self.stream = stream
        self.is_terminal = is_terminal
        self._color = color
        self._width = width
        self._progress = ""

    def line(self, text: str, tone: str = "plain") -> None:
        """Print a line above the progress line."""
        shown = f"{_COLOURS[tone]}{text}{_RESET}" if self._color and tone in _COLOURS else text
        clear = _CLEAR_LINE if self._progress else ""
        self.stream.write_text(f"{clear}{shown}\n{self._progress}")

    def progress(self, parts: Sequence[tuple[int, str]]) -> None:
        """Redraw the progress line in place, one column short of the width so that it never wraps."""
        line = fit_parts(parts, max(self._width() - 1, 1))
        if line != self._progress:
            self._progress = line
            self.stream.write_text(_CLEAR_LINE + line)

    def end_progress(self) -> None:
        """Leave the progress line where it is and go on below it."""
        if self._progress:
            self._progress = ""
            self.stream.write_text("\n")
