"""Questions: yes or no, and what becomes of a live run when the app ends."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Static

from gpuworkbench.tui.screens.modal import Modal


class Choice(Modal[str]):
    """A question with answers; the first is the default, escape answers "cancel"."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "answer('cancel')", "Cancel", id="dialog.cancel", tooltip="Change nothing"),
        Binding("left", "app.focus_previous", "Previous", show=False, id="dialog.previous"),
        Binding("right", "app.focus_next", "Next", show=False, id="dialog.next"),
    ]

    def __init__(self, question: str, answers: list[tuple[str, str]]) -> None:
        """`answers`: (id, label) of each button."""
        super().__init__()
        self._question = question
        self._answers = answers

    def compose(self) -> ComposeResult:
        """The question above its buttons."""
        with Vertical(classes="dialog"):
            yield Static(self._question, markup=False, classes="question")
            with Horizontal(classes="answers"):
                for index, (name, label) in enumerate(self._answers):
                    yield Button(label, id=name, variant="primary" if index == 0 else "default", compact=True)

    def on_mount(self) -> None:
        """The default has the focus, so that enter takes it."""
        self.query(Button).first().focus()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id or "cancel")

    def action_answer(self, name: str) -> None:
        """Answer by key."""
        self.dismiss(name)


class Confirm(Modal[bool]):
    """Yes or no; escape is no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "answer(False)", "No", id="confirm.no", tooltip="Change nothing"),
        Binding("y", "answer(True)", "Yes", id="confirm.yes", tooltip="Do it"),
        Binding("left", "app.focus_previous", "Previous", show=False, id="confirm.previous"),
        Binding("right", "app.focus_next", "Next", show=False, id="confirm.next"),
    ]

    def __init__(self, question: str, yes: str = "Yes", no: str = "No", *, is_default_no: bool = False) -> None:
        """`is_default_no`: enter says no, for what cannot be undone."""
        super().__init__()
        self._question = question
        self._labels = (yes, no)
        self._default = "no" if is_default_no else "yes"

    def compose(self) -> ComposeResult:
        """The question above its two buttons."""
        with Vertical(classes="dialog"):
            yield Static(self._question, markup=False, classes="question")
            with Horizontal(classes="answers"):
                yield Button(self._labels[0], id="yes", variant="primary", compact=True)
                yield Button(self._labels[1], id="no", compact=True)

    def on_mount(self) -> None:
        """Enter says yes, where that can be undone: the question was asked for by a key."""
        self.query_one(f"#{self._default}", Button).focus()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """Answer by key."""
        self.dismiss(answer)
