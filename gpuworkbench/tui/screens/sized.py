"""Screens that lay out at the size that the terminal has now, whatever size a message speaks of.

Textual 8.2 tells screens in the background of a new size twice: by a message, and through the screen above them. A
screen with messages of two sizes in its queue then lays out at one, which sends it the other again, without end.
"""

from __future__ import annotations

from textual.geometry import Size
from textual.screen import Screen, ScreenResultType


class SizedScreen(Screen[ScreenResultType]):
    """Base of every screen of the app."""

    def _screen_resized(self, size: Size) -> None:
        super()._screen_resized(self.app.size)
