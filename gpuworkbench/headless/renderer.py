"""A run without a screen, in the same numbers as the app: they come through the same reducer."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from gpuworkbench.events import schema
from gpuworkbench.events.codec import event_lines
from gpuworkbench.events.schema import AnyEvent
from gpuworkbench.headless.summary import summary_lines
from gpuworkbench.headless.terminal import OutStream, People, terminal_width, wants_color
from gpuworkbench.state.lines import notable_lines, progress_parts
from gpuworkbench.state.run_state import RunState
from gpuworkbench.text import safe_text

PLAIN_INTERVAL_S = 5.0
REDRAW_INTERVAL_S = 0.1
# What JSON strings may hold raw but a terminal must not get: controls, invisible and reordering characters.
_NOT_PLAIN = re.compile(r"[^\x20-\x7e\n]")


class HeadlessRenderer:
    """Feed it what `LiveLog.poll` found and the state after it.

    With `json`, stdout carries the run's events as they stand in the log and nothing else, and people's lines go to
    stderr. `is_terminal` is about the stream that carries people's lines: there a progress line is redrawn in place,
    elsewhere a plain line comes at step 1 and then at most every `PLAIN_INTERVAL_S`.
    """

    def __init__(
        self,
        stream_out: TextIO,
        stream_err: TextIO,
        *,
        json: bool,
        color: bool | None,
        is_terminal: bool,
        clock: Callable[[], float] = time.monotonic,
        width: Callable[[], int] = terminal_width,
    ) -> None:
        """`color=None`: where the terminal has it and NO_COLOR is not set."""
        self._json = OutStream(stream_out) if json else None
        self._json_is_terminal = json and stream_out.isatty()
        self._people = People(
            OutStream(stream_err if json else stream_out),
            is_terminal=is_terminal,
            color=wants_color(is_terminal) if color is None else color,
            width=width,
        )
        self._clock = clock
        self._drawn_at: float | None = None
        self._drawn_step: int | None = None
        self._has_step = False  # one that came since: a resume begins with the state of what was

    def feed(self, lines: bytes, events: Sequence[AnyEvent], state: RunState) -> None:
        """Show what came: the log's lines, the events on them, and the run after them."""
        if self._json is not None and lines:
            self._json.write_bytes(self._for_json(lines))
        if not self._has_step:
            self._has_step = any(type(event) is schema.Step for event in events)
        if events and type(events[-1]) is schema.RunFinished and self._has_step:
            self._draw(state)  # before the line that says how it ended
        for event in events:
            if type(event) is schema.Step or type(event) is schema.Memory:
                continue
            for line in notable_lines(event, state):
                self._people.line(line.text, line.tone)
        self._show_progress(state)

    def note(self, text: str, tone: str = "plain") -> None:
        """A line for people that is not in the log."""
        self._people.line(safe_text(text), tone)

    def finish(self, state: RunState, run: str | None = None) -> None:
        """The last progress, then the summary; `run` is what a person types to name the run (default: its id)."""
        if self._has_step and self._drawn_step != state.step:
            self._draw(state)
        self._people.end_progress()
        for text in summary_lines(state, run):
            self._people.line(text)

    def _show_progress(self, state: RunState) -> None:
        if not self._has_step or state.last_step is None:
            return
        now = self._clock()
        interval_s = REDRAW_INTERVAL_S if self._people.is_terminal else PLAIN_INTERVAL_S
        is_due = self._drawn_at is None or now - self._drawn_at >= interval_s
        if is_due and (self._people.is_terminal or state.step != self._drawn_step):
            self._drawn_at = now
            self._draw(state)

    def _draw(self, state: RunState) -> None:
        self._drawn_step = state.step
        parts = progress_parts(state)
        if self._people.is_terminal:
            self._people.progress(parts)
        else:
            self._people.line("  ".join(text for _, text in parts))

    def _for_json(self, lines: bytes) -> bytes:
        """The log's event lines (a torn one is none); on a terminal, what is not plain ASCII as JSON's escapes."""
        data = event_lines(lines)
        if not self._json_is_terminal:
            return data
        return _NOT_PLAIN.sub(lambda match: _escape(match[0]), data.decode("utf-8", "replace")).encode("ascii")


def _escape(char: str) -> str:
    """A character as JSON's \\uXXXX, in two where it lies beyond the 16-bit range."""
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
