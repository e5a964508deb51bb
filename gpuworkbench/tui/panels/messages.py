"""Messages: what the log says that is notable, in the headless wording; or what the trainer printed."""

from __future__ import annotations

from rich.text import Text
from textual.events import Resize
from textual.widgets import RichLog

from gpuworkbench.runs.status import RunStatus
from gpuworkbench.state.lines import Line, notable_lines
from gpuworkbench.tui.follower import RunView

MAX_LINES = 2_000
_TONES = {"good": "success", "warning": "warning", "error": "error"}


class MessagesPanel(RichLog):
    """A log that follows its end; scroll up to read, and it stays."""

    TITLE = "Messages"
    HELP = "What happened, in the order of the log; at a crash the end of trainer.log. o shows what the trainer printed"
    is_plot = False

    def __init__(self) -> None:
        super().__init__(classes="panel", markup=False, highlight=False, wrap=True, max_lines=MAX_LINES, min_width=20)
        self.title = self.border_title = self.TITLE
        self.tooltip = self.HELP
        self.view: RunView | None = None
        self._shown_seq = -1
        self._generation = 0
        self._width = 0
        self._log_end: tuple[str, ...] = ()
        self._reason = ""
        self._shows_output = False
        self._output: tuple[str, ...] | None = None

    def toggle_output(self) -> None:
        """What the trainer printed (trainer.log) in place of the messages, and back."""
        self._shows_output = not self._shows_output
        self.border_title = f"{self.title}: trainer.log" if self._shows_output else self.title
        self._restart()
        if self.view is not None:
            self.show(self.view)

    def show(self, view: RunView) -> None:
        """Append what is new; start again where the log was replaced."""
        if view.generation != self._generation:
            self._restart()
            self._generation = view.generation
        self.view = view
        if not self.size.width:
            return
        if self._shows_output:
            self._show_output(view)
        else:
            self._show_messages(view)

    def _show_output(self, view: RunView) -> None:
        if view.output != self._output:
            self.clear()
            self._output = view.output
            for text in view.output or ("trainer.log is empty: the trainer printed nothing",):
                self._write(Line(text))

    def _show_messages(self, view: RunView) -> None:
        for event in view.state.notable():
            if event.seq > self._shown_seq:
                self._shown_seq = event.seq
                for line in notable_lines(event, view.state):  # type: ignore[arg-type]
                    self._write(line)
        if view.status is RunStatus.CRASHED and view.report.reason != self._reason:
            self._write(Line(f"crashed: {view.report.reason}", "error"))
        self._reason = view.report.reason if view.status is RunStatus.CRASHED else ""
        if view.report.log_end and view.report.log_end != self._log_end:
            self._write(Line("the end of trainer.log:", "error"))
            for text in view.report.log_end:
                self._write(Line(f"  {text}"))
        self._log_end = view.report.log_end

    def on_resize(self, event: Resize) -> None:
        """Wrapped lines are kept as they were: write them again for another width."""
        super().on_resize(event)
        if self.size.width and self.size.width != self._width:
            self._width = self.size.width
            self._restart()
            if self.view is not None:
                self.show(self.view)

    def redraw(self) -> None:
        """The lines stay as they are."""

    def _restart(self) -> None:
        self.clear()
        self._shown_seq = -1
        self._log_end = ()
        self._reason = ""
        self._output = None

    def _write(self, line: Line) -> None:
        color = self.app.theme_variables.get(_TONES.get(line.tone, ""), "")
        # Without a width it would wrap at that of the terminal at the app's start.
        width = max(self.scrollable_content_region.width, 20)
        self.write(Text(line.text, style=color, overflow="fold"), width=width, scroll_end=None)
