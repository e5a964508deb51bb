"""One line that says what a launch is at; not there while nothing is being prepared."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from gpuworkbench.text import safe_text
from gpuworkbench.tui.widgets.glyphs import bar

BAR_WIDTH = 24


class JobBar(Static):
    """Shown by `progress`, hidden by `done`."""

    def __init__(self) -> None:
        super().__init__("", id="job", markup=False)
        self.display = False

    def progress(self, name: str, stage: str, fraction: float | None) -> None:
        """Say what is going on; without a fraction there is no bar."""
        self.display = True
        share = f" {bar(fraction, BAR_WIDTH)} {fraction:.0%}" if fraction is not None else ""
        self.update(
            Content.assemble((f" {safe_text(name)} ", "bold"), f" {safe_text(stage)} ", (share, "$primary")),
            layout=False,
        )

    def done(self) -> None:
        """Nothing is going on."""
        self.display = False
