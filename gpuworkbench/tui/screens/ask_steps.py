"""How far a run that got to its end is to go on: the total number of steps, typed in."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Input, Static

from gpuworkbench.tui.screens.modal import Modal

MAX_STEPS = 10**9


class AskSteps(Modal[int]):
    """Answers the total; None where nothing is to be started. Twice as many as there are is what it begins with."""

    AUTO_FOCUS = "#steps"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Cancel", id="steps.cancel", tooltip="Start nothing"),
    ]

    def __init__(self, done: int) -> None:
        """`done`: the steps that the run has."""
        super().__init__()
        self._done = done

    def compose(self) -> ComposeResult:
        """One field."""
        with Vertical(classes="dialog ask-loss") as box:
            box.border_title = "Train on"
            yield Static(Content(f"The run is complete at step {self._done}. To which step is it to go on?"))
            yield Input(str(2 * self._done), id="steps", compact=True, select_on_focus=True)
            yield Static("", id="steps-problem", markup=False)
            with Horizontal(classes="answers"):
                yield Button("Train on", id="go-on", variant="primary", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    @on(Input.Submitted)
    @on(Button.Pressed, "#go-on")
    def _take(self) -> None:
        text = self.query_one("#steps", Input).value.strip()
        steps = int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else 0
        if self._done < steps <= MAX_STEPS:
            self.dismiss(steps)
            return
        problem = f"{text[:40]!r} is not a step after {self._done}"
        self.query_one("#steps-problem", Static).update(Content.styled(problem, "$text-error"))

    @on(Button.Pressed, "#cancel")
    def action_leave(self) -> None:
        """Start nothing."""
        self.dismiss(None)
