"""A loss to be reached, typed in."""

from __future__ import annotations

import math
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Input, Static

from gpuworkbench.tui.screens.modal import Modal


class AskLoss(Modal[tuple[float | None] | None]):
    """Answers (loss,), with None in it for the default; None where nothing is to change."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Cancel", id="loss.cancel", tooltip="Change nothing"),
    ]

    def __init__(self, loss: float | None) -> None:
        super().__init__()
        self._loss = loss

    def compose(self) -> ComposeResult:
        """One field."""
        with Vertical(classes="dialog ask-loss") as box:
            box.border_title = "Time to a loss"
            yield Static(Content("Nats per token; empty: the lowest that all runs reached"))
            yield Input("" if self._loss is None else f"{self._loss:g}", id="loss", compact=True)
            yield Static("", id="loss-problem", markup=False)
            with Horizontal(classes="answers"):
                yield Button("Show", id="show", variant="primary", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    @on(Input.Submitted)
    @on(Button.Pressed, "#show")
    def _take(self) -> None:
        text = self.query_one("#loss", Input).value.strip()
        if not text:
            self.dismiss((None,))
            return
        try:
            loss = float(text)
        except ValueError:
            loss = math.nan
        if 0 < loss < 1e6:
            self.dismiss((loss,))
        else:
            problem = f"{text[:40]!r} is not a loss; give a number above 0"
            self.query_one("#loss-problem", Static).update(Content.styled(problem, "$text-error"))

    @on(Button.Pressed, "#cancel")
    def action_leave(self) -> None:
        """Change nothing."""
        self.dismiss(None)
