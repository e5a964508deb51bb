"""Saving a draft as a preset of one's own: its name and what it is for, and a word before anything is replaced."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Input, Static

from gpuworkbench.config.own_presets import check_preset_name, hidden_by, own_preset, save_own_preset
from gpuworkbench.errors import ConfigError, WorkbenchError
from gpuworkbench.text import safe_text
from gpuworkbench.tui.form.draft import Draft, saved_overrides
from gpuworkbench.tui.screens.modal import Modal
from gpuworkbench.tui.widgets.field_row import TextEditor

MAX_DESCRIPTION = 400


class SavePreset(Modal[str]):
    """Answers with the name that was saved, with "" where nothing was."""

    AUTO_FOCUS = "#save-name"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Cancel", id="save.cancel", tooltip="Save nothing"),
        Binding("down", "app.focus_next", "Next", show=False, id="save.next"),
        Binding("up", "app.focus_previous", "Previous", show=False, id="save.previous"),
    ]

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self._draft = draft
        self._agreed_name = ""  # what it hides was said, and save pressed again

    def compose(self) -> ComposeResult:
        """Two lines to fill, what is wrong with them, and the buttons."""
        with Vertical(classes="dialog save-preset"):
            yield Static("Save as a preset of your own", classes="question", markup=False)
            with Horizontal(classes="line"):
                yield Static("name", markup=False)
                yield TextEditor(_free_name(self._draft.preset.name), id="save-name", compact=True, max_length=64)
            with Horizontal(classes="line"):
                yield Static("description", markup=False)
                description = safe_text(self._draft.preset.config.description, max_chars=MAX_DESCRIPTION)
                yield TextEditor(description, id="save-description", compact=True, max_length=MAX_DESCRIPTION)
            yield Static("", id="save-note", markup=False)
            with Horizontal(classes="answers"):
                yield Button("Save", id="save", variant="primary", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    @property
    def _typed_name(self) -> str:
        return self.query_one("#save-name", Input).value.strip()

    def _note(self, text: str, style: str) -> None:
        self.query_one("#save-note", Static).update(Content.styled(safe_text(text), style))

    @on(Input.Changed, "#save-name")
    def _look_at_name(self) -> None:
        try:
            hides = hidden_by(check_preset_name(self._typed_name))
        except ConfigError as error:
            self._note(error.line(), "$text-error")
            return
        self._note(hides, "$text-warning")

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self._save()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "save":
            self._save()
        else:
            self.dismiss("")

    def _save(self) -> None:
        """Save; where something would be replaced or hidden, only when asked a second time."""
        name = self._typed_name
        try:
            hides = hidden_by(check_preset_name(name))
            if hides and self._agreed_name != name:
                self._agreed_name = name
                self._note(f"{hides}: save once more to do so", "$text-warning")
                return
            changes, twin_changes = saved_overrides(self._draft)
            description = self.query_one("#save-description", Input).value
            text = own_preset(self._draft.preset, changes, twin_changes, description)
            save_own_preset(name, text, overwrite=self._agreed_name == name)
        except WorkbenchError as error:
            self._note(error.line(), "$text-error")
            return
        self.dismiss(name)

    def action_leave(self) -> None:
        """Save nothing."""
        self.dismiss("")


def _free_name(name: str) -> str:
    """`<name>-mine`, with a number where that is taken."""
    for number in range(1, 100):
        candidate = f"{name[:56]}-mine" + (f"-{number}" if number > 1 else "")
        if not hidden_by(candidate):
            return candidate
    return name
