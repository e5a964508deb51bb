"""Changing a run while it trains: the whitelisted keys, checked as they are typed by the trainer's own rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Input, Static

from gpuworkbench.config.live_keys import LIVE_KEYS, checked
from gpuworkbench.errors import ConfigError
from gpuworkbench.tui.screens.modal import Modal


class LiveEdit(Modal[dict[str, float]]):
    """A line a key with its value now; answers the changed ones, none where it is left."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Cancel", id="edit.cancel", tooltip="Change nothing"),
    ]

    def __init__(self, values: Mapping[str, float]) -> None:
        """`values`: what holds now, for each key of LIVE_KEYS."""
        super().__init__()
        self._values = values

    def compose(self) -> ComposeResult:
        """Keys, values, and what is wrong with them."""
        with Vertical(classes="dialog live-edit") as box:
            box.border_title = "Change while it trains"
            for key, words in LIVE_KEYS.items():
                with Horizontal(classes="live-key"):
                    yield Static(Content(key), classes="live-name")
                    yield Input(f"{self._values[key]:g}", id=_id(key), compact=True, select_on_focus=True)
                yield Static(Content.styled(words, "$foreground-muted"), classes="live-words")
            yield Static("", id="live-problem", markup=False)
            with Horizontal(classes="answers"):
                yield Button("Apply", id="apply", variant="primary", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    @on(Input.Changed)
    def _changed(self) -> None:
        try:
            self._read()
        except ConfigError as error:
            self._say(error.line())
        else:
            self._say("")

    @on(Input.Submitted)
    @on(Button.Pressed, "#apply")
    def _apply(self) -> None:
        try:
            changes = self._read()
        except ConfigError as error:
            self._say(error.line())
            return
        self.dismiss(changes)

    @on(Button.Pressed, "#cancel")
    def action_leave(self) -> None:
        """Change nothing."""
        self.dismiss({})

    def _read(self) -> dict[str, float]:
        """The keys whose value is another one now. Raises ConfigError."""
        found = {key: checked(key, number(self.query_one(f"#{_id(key)}", Input).value)) for key in LIVE_KEYS}
        return {key: value for key, value in found.items() if value != self._values[key]}

    def _say(self, problem: str) -> None:
        self.query_one("#live-problem", Static).update(Content.styled(problem, "$text-error"))


def number(text: str) -> int | float | str:
    """What was typed, as a number where it is one; `checked` refuses the rest."""
    for kind in (int, float):
        try:
            return kind(text)
        except (ValueError, OverflowError):
            continue
    return text[:80]


def _id(key: str) -> str:
    return key.replace(".", "-")
