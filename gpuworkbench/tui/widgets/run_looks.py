"""How runs look: each status by a glyph and a colour; compared ones by a colour, a marker and a letter.

Nothing is said by colour alone, for eyes or terminals without colours.
"""

from __future__ import annotations

from typing import NamedTuple

from textual.color import Color

from gpuworkbench.runs.status import RunStatus

# status -> (glyph, style); the glyphs differ so that no colour is needed
STATUS_LOOKS: dict[RunStatus, tuple[str, str]] = {
    RunStatus.QUEUED: ("◌", "$foreground-muted"),
    RunStatus.RUNNING: ("●", "$text-success"),
    RunStatus.PAUSED: ("‖", "$text-warning"),
    RunStatus.STALLED: ("◔", "$text-warning"),
    RunStatus.COMPLETED: ("✓", "$text-success"),
    RunStatus.STOPPED: ("■", "$text-accent"),
    RunStatus.FAILED: ("✗", "$text-error"),
    RunStatus.CRASHED: ("✗", "$text-error"),
}


class Look(NamedTuple):
    """One run's colour ("#rrggbb"), its marker on the curve and its letter in tables."""

    color: str
    marker: str
    letter: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour for plots."""
        return Color.parse(self.color).rgb


_MARKERS = ("●", "■", "▲", "◆", "○", "□", "△", "◇")
# After Okabe and Ito (2008), lighter on dark grounds and darker on light ones; neighbours differ in lightness too.
_ON_DARK = ("#56b4e9", "#e69f00", "#2fc492", "#f0e442", "#d58cb8", "#f2704d", "#a99bff", "#d0d0d0")
_ON_LIGHT = ("#0072b2", "#b04a00", "#00714f", "#8a6d00", "#a03a78", "#c4122f", "#5a3fc0", "#333333")


def looks(*, is_dark: bool) -> list[Look]:
    """The looks of the first to the eighth run."""
    colors = _ON_DARK if is_dark else _ON_LIGHT
    letters = (chr(ord("A") + index) for index in range(len(colors)))
    return [Look(*parts) for parts in zip(colors, _MARKERS, letters, strict=True)]
