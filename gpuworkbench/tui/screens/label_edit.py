"""A run's name and notes."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Input, Static, TextArea

from gpuworkbench.text import safe_text
from gpuworkbench.tui.screens.modal import Modal

MAX_NAME_CHARS = 80
MAX_NOTES_CHARS = 20_000


class LabelEdit(Modal[tuple[str, str] | None]):
    """Answers (name, notes), None where nothing is to change."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Cancel", id="label.cancel", tooltip="Change nothing"),
        Binding("ctrl+s", "save", "Save", id="label.save", tooltip="Store name and notes", priority=True),
    ]

    def __init__(self, run_id: str, name: str, notes: str) -> None:
        super().__init__()
        self._run_id = run_id
        self._label = (safe_text(name, max_chars=MAX_NAME_CHARS), safe_text(notes, multiline=True))

    def compose(self) -> ComposeResult:
        """Two fields."""
        name, notes = self._label
        with Vertical(classes="dialog label-edit") as box:
            box.border_title = safe_text(self._run_id, max_chars=60)
            yield Static(Content("Name, shown instead of the id"))
            yield Input(name, id="name", max_length=MAX_NAME_CHARS, compact=True)
            yield Static(Content("Notes"))
            yield TextArea(notes[:MAX_NOTES_CHARS], id="notes", compact=True, tab_behavior="focus")
            with Horizontal(classes="answers"):
                yield Button("Save", id="save", variant="primary", compact=True)
                yield Button("Cancel", id="cancel", compact=True)
            yield Static(Content.styled("ctrl+s saves, escape leaves it as it was", "$foreground-muted"))

    @on(Input.Submitted)
    @on(Button.Pressed, "#save")
    def action_save(self) -> None:
        """Answer with what was typed."""
        name = " ".join(self.query_one("#name", Input).value.split())
        self.dismiss((name, self.query_one("#notes", TextArea).text[:MAX_NOTES_CHARS].strip()))

    @on(Button.Pressed, "#cancel")
    def action_leave(self) -> None:
        """Change nothing."""
        self.dismiss(None)
