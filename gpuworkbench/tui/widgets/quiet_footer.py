"""A footer that is made anew only when it would look different: moving between fields costs layouts otherwise."""

from __future__ import annotations

from textual.screen import Screen
from textual.widgets import Footer


class QuietFooter(Footer):
    """Textual's footer, which hears of every change of focus."""

    _looks: tuple[tuple[str, str, bool], ...] | None = None

    def bindings_changed(self, screen: Screen[object]) -> None:
        """Make it anew where another key is shown, or one is enabled that was not."""
        looks = tuple(
            (active.binding.key, active.binding.description, active.enabled)
            for active in screen.active_bindings.values()
            if active.binding.show
        )
        if looks != self._looks:
            self._looks = looks
            super().bindings_changed(screen)
