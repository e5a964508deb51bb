"""One field of the launch form: its name, the editor that suits its type, and what it was or what is wrong with it."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Select, Static, Switch

from gpuworkbench.text import safe_text
from gpuworkbench.tui.form.fields import FormField

NAME_WIDTH, EDITOR_WIDTH, SWITCH_WIDTH = 28, 24, 5  # cells, as in launch.tcss
ROOM_FOR_WORDS = 40  # cells beside the editor from which a field says there what it is for
BY_ITSELF = "chosen at the start"


class TextEditor(Input):
    """A line of text; what is pasted passes the gate that all foreign text passes."""

    def validate_value(self, value: str) -> str:
        """See the class."""
        return safe_text(value)


class ChoiceEditor(Select[str], inherit_bindings=False):
    """A list of a few; up and down are the form's, so that they move between fields here too."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "show_overlay", "Choose", show=False, id="form.choose", tooltip="Open the list"),
    ]


class FieldRow(Static):
    """Holds the text of one field. Posts `Edited` when a person changes it.

    Name and note are drawn by the row itself, below its editor: a form has many rows, and a widget costs time.
    """

    class Edited(Message):
        """The field has another text; None is what it has without a change."""

        def __init__(self, key: str, text: str) -> None:
            super().__init__()
            self.key = key
            self.text = text

    def __init__(self, item: FormField, text: str) -> None:
        super().__init__(classes="field", markup=False)
        self.item = item
        self._text = text
        self._shown: tuple[str, str, bool, str, bool] | None = None

    def compose(self) -> ComposeResult:
        """The editor alone."""
        yield self._make_editor()

    def _make_editor(self) -> Widget:
        if self.item.editor == "switch":
            return Switch(self._text == "true", animate=False, classes="editor")
        if self.item.editor == "choice":
            return ChoiceEditor(
                self._options(),
                prompt=BY_ITSELF,
                allow_blank=self.item.is_optional,
                value=self._text or Select.NULL,
                compact=True,
                classes="editor",
            )
        placeholder = BY_ITSELF if self.item.is_optional else ""
        return TextEditor(self._text, placeholder=placeholder, compact=True, classes="editor")

    def _options(self) -> list[tuple[str, str]]:
        """The choices; a value that is none of them stays among them, or it would be lost unasked."""
        known = list(self.item.choices)
        if self._text and self._text not in known:
            known.append(self._text)
        return [(name, name) for name in known]

    @property
    def editor(self) -> Widget:
        """What the keys go to."""
        return self.query_one(".editor")

    @property
    def text(self) -> str:
        """The field's text, as `--set` takes it."""
        return self._text

    def put(self, text: str) -> None:
        """Another text that no person typed."""
        if text == self._text:
            return
        self._text = text
        editor = self.editor
        with editor.prevent(Input.Changed, Switch.Changed, Select.Changed):
            if isinstance(editor, Switch):
                editor.value = text == "true"
            elif isinstance(editor, ChoiceEditor):
                editor.set_options(self._options())
                editor.value = text or Select.NULL
            elif isinstance(editor, Input):
                editor.value = text

    def show(self, base: str, error: str, *, is_changed: bool) -> None:
        """Mark the field against the preset's value, and with what is wrong."""
        has_room = self.size.width - NAME_WIDTH - EDITOR_WIDTH - 2 >= ROOM_FOR_WORDS
        shown = (base, error, is_changed, self._text if self.item.editor == "switch" else "", has_room)
        if shown == self._shown:
            return
        self._shown = shown
        mark = "✗" if error else "●" if is_changed else " "
        name = f"{mark} {self.item.label}"[: NAME_WIDTH - 1].ljust(NAME_WIDTH)
        word = ""
        if self.item.editor == "switch":
            word = " " * SWITCH_WIDTH + ("on" if self._text == "true" else "off")
        name += word.ljust(EDITOR_WIDTH + 2)
        note = f"was {base or 'empty'}" if is_changed else ""
        note = error.removeprefix(self.item.name).lstrip(": ") if error else note
        style = "$text-error" if error else "$text-accent" if is_changed else ""
        beside = (safe_text(note, max_chars=120), style)
        if has_room and not note:
            beside = (safe_text(self.item.key.documentation, max_chars=200), "$foreground-muted")
        self.update(Content.assemble((name, style), beside), layout=False)

    def on_resize(self) -> None:
        """There may be room for more words, or less."""
        if self._shown is not None:
            base, error, is_changed, *_ = self._shown
            self.show(base, error, is_changed=is_changed)

    @on(Input.Changed)
    @on(Switch.Changed)
    @on(Select.Changed)
    def _edited(self, event: Input.Changed | Switch.Changed | Select.Changed) -> None:
        event.stop()
        if isinstance(event, Switch.Changed):
            text = "true" if event.value else "false"
        else:
            text = "" if event.value is Select.NULL else str(event.value)
        if text != self._text:
            self._text = text
            self.post_message(self.Edited(self.item.name, text))
