"""The base of every dialog."""

from __future__ import annotations

from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen, ScreenResultType

from gpuworkbench.tui.screens.sized import SizedScreen


class Modal(SizedScreen[ScreenResultType], ModalScreen[ScreenResultType]):
    """Answers once: a second escape, pressed before the first was seen, must not take the screen below away."""

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Close with an answer; nothing where it is closed already."""
        return super().dismiss(result) if self.is_active else AwaitComplete.nothing()  # type: ignore[no-untyped-call]
