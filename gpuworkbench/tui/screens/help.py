"""Help: every key of the screen below, taken from its bindings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from gpuworkbench.tui.screens.modal import Modal
from gpuworkbench.tui.widgets.rows import Part, lines


class KeyHelp(NamedTuple):
    """One line of the help."""

    key: str
    text: str
    is_enabled: bool


class HelpScreen(Modal[None]):
    """A list of keys; any of escape, ? and q closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", "Close", id="help.close", tooltip="Back"),
    ]

    def __init__(self, title: str, keys: Sequence[KeyHelp]) -> None:
        super().__init__()
        self._title = title
        self._keys = keys

    def compose(self) -> ComposeResult:
        """A scrollable box."""
        with VerticalScroll(classes="dialog help") as box:
            box.border_title = self._title
            yield Static(self._content(), markup=False)

    def _content(self) -> Content:
        rows: list[list[Part]] = []
        for item in self._keys:
            style = "" if item.is_enabled else "$foreground-disabled"
            rows.append([(f"{item.key:<12}", f"bold {style or '$accent'}"), (item.text, style)])
        rows += [[""], [("A key in grey does nothing just now.", "$foreground-muted")]]
        return lines(*rows)


def keys_of(screen: Screen[object]) -> list[KeyHelp]:
    """What can be pressed on a screen: the keys of the focused widget, of the screen and of the app that are ours."""
    found: dict[str, KeyHelp] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if not binding.id or binding.system or not binding.description:
            continue  # Textual's own keys for moving about have no id
        text = f"{binding.description}: {binding.tooltip}" if binding.tooltip else binding.description
        key = screen.app.get_key_display(binding)
        found.setdefault(binding.action, KeyHelp(key, text, active.enabled))
    return list(found.values())
