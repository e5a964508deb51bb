"""Doctor: the checks of this machine as they come, each with its verdict and what to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.message import Message
from textual.widgets import Footer, Static

from gpuworkbench.gpu.checks import Check, Status
from gpuworkbench.gpu.doctor import PLACES, render, stream_checks, summary
from gpuworkbench.gpu.torch_build import TorchProbe
from gpuworkbench.text import safe_text, wrap_text
from gpuworkbench.tui.screens.sized import SizedScreen
from gpuworkbench.tui.watch import Watcher
from gpuworkbench.tui.widgets.rows import Part, lines

if TYPE_CHECKING:
    from gpuworkbench.tui.app import WorkbenchApp

Found = Mapping[str, tuple[Check, ...]]  # by place; a place that is missing has not answered yet
# verdict -> (glyph, style); the glyphs differ so that no colour is needed
LOOKS: dict[Status, tuple[str, str]] = {
    "ok": ("✓", "$text-success"),
    "warn": ("!", "$text-warning"),
    "fail": ("✗", "$text-error"),
    "n/a": ("-", "$foreground-muted"),
}
NAME_WIDTH = 15


class DoctorSource:
    """The source of the checks for a `Watcher`; ends after the last one."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir
        self._probe: TorchProbe | None = None

    def cancel(self) -> None:
        """End the subprocess that asks torch."""
        if self._probe is not None:
            self._probe.kill()

    def __call__(self, stop: threading.Event) -> Iterator[Found]:
        """What is known so far, whenever that is more."""
        probe = self._probe = TorchProbe()
        found: dict[str, tuple[Check, ...]] = {}
        try:
            for place, checks in stream_checks(self._runs_dir, None, probe):
                if stop.is_set():
                    return
                found[place] = tuple(checks)
                yield dict(found)
        finally:
            probe.close()


class DoctorScreen(SizedScreen[None]):
    """One scrollable list."""

    app: WorkbenchApp
    AUTO_FOCUS = "#checks"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "look_again", "Again", id="doctor.again", tooltip="Check everything anew"),
        Binding("c,y", "copy", "Copy", id="doctor.copy", tooltip="The whole text to the terminal's clipboard"),
        Binding("escape", "leave", "Back", id="doctor.back", tooltip="Back to where you came from"),
    ]

    class Ready(Message):
        """More checks have answered."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Found = {}
        self._source: DoctorSource | None = None
        self._watcher: Watcher[Found] | None = None
        # Held, not looked up: what lies within a box is there later than the screen's first look.
        self._words = Static("", markup=False)

    def compose(self) -> ComposeResult:
        """See the class."""
        with VerticalScroll(id="checks", classes="panel") as box:
            box.border_title = "Doctor: what keeps a run from working here"
            yield self._words
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """Begin."""
        self.action_look_again()

    def on_unmount(self) -> None:
        """Nothing is asked any more."""
        self._end()

    def _end(self) -> None:
        if self._watcher is not None and self._source is not None:
            self._watcher.stop()
            self._source.cancel()

    def action_look_again(self) -> None:
        """Check everything anew."""
        self._end()
        self.found = {}
        self._source = DoctorSource(self.app.services.runs_dir)
        self._watcher = Watcher(self._source, lambda: self.post_message(self.Ready()), "doctor")
        self._watcher.start()
        self._show()

    def action_leave(self) -> None:
        """Back."""
        self.app.leave(self)

    def action_copy(self) -> None:
        """Through the terminal (OSC 52), so that it works over SSH where the terminal allows it."""
        self.app.copy_to_clipboard(safe_text(render(self.checks, color=False), multiline=True))
        self.app.notify("copied, where your terminal lets programs copy", markup=False)

    @property
    def checks(self) -> list[Check]:
        """What answered, in the order it is shown."""
        return [check for place in PLACES for check in self.found.get(place, ())]

    @property
    def is_complete(self) -> bool:
        """Whether everything answered."""
        return all(place in self.found for place in PLACES)

    @on(Ready)
    def _ready(self) -> None:
        found = self._watcher.take() if self._watcher is not None else None
        if found is not None:
            self.found = found
            self._show()

    def on_resize(self, event: Resize) -> None:
        """Lines are broken anew."""
        self.call_after_refresh(self._show)

    def _show(self) -> None:
        if not self.app.has_screen(self):
            return
        box = self.query_one("#checks", VerticalScroll)
        width = max((box.content_size.width or self.size.width - 4) - NAME_WIDTH - 3, 20)
        box.border_subtitle = summary(self.checks) if self.is_complete else "looking"
        self._words.update(self._lines(width))

    def _lines(self, width: int) -> Content:
        rows: list[list[Part]] = []
        for place in PLACES:
            if place in self.found:
                for check in self.found[place]:
                    rows += check_rows(check, width)
            elif place != "cards":  # the driver's line stands for them
                rows.append([("… ", "$foreground-muted"), (f"{place:<{NAME_WIDTH}} ", "$foreground-muted"), "asking"])
        return lines(*rows)


def check_rows(check: Check, width: int) -> list[list[Part]]:
    """A check's lines: verdict, name and what was found, broken to `width` cells; below, what to do."""
    glyph, style = LOOKS[check.status]
    indent = " " * (NAME_WIDTH + 3)
    first, *rest = wrap_text(safe_text(check.detail), width)
    name = safe_text(check.name, max_chars=NAME_WIDTH)
    rows: list[list[Part]] = [[(f"{glyph} ", f"bold {style}"), (f"{name:<{NAME_WIDTH}} ", "bold"), first]]
    rows += [[indent + line] for line in rest]
    if check.advice:
        first, *rest = wrap_text(safe_text(check.advice), width - 2)
        rows.append([indent, ("→ ", style), (first, style)])
        rows += [[f"{indent}  ", (line, style)] for line in rest]
    return rows
