"""The base of every panel of the live screen: a titled box that is given a `RunView` and draws its part of it."""

from __future__ import annotations

import math

from textual.color import Color
from textual.content import Content
from textual.visual import VisualType
from textual.widgets import Static

from gpuworkbench.state.curves import step_at, value_at
from gpuworkbench.text import safe_text
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.plot_axis import PlotAxis
from gpuworkbench.tui.widgets.plot import Rgb


class Panel(Static, can_focus=True):
    """One piece of a run. A subclass says its TITLE and makes its content in `draw`, from the view alone."""

    TITLE = ""
    HELP = ""
    is_plot = False  # redrawn at the slower rhythm of plots

    def __init__(self, id: str | None = None) -> None:
        super().__init__(classes="panel", markup=False, id=id)
        self.title = self.TITLE
        self.view: RunView | None = None
        self.drawn: RunView | None = None
        self.axis = PlotAxis()
        self.border_title = self.title
        self.tooltip = self.HELP or None

    def show(self, view: RunView) -> None:
        """Take a new view; plots wait for their own tick."""
        self.view = view
        if not self.is_plot:
            self.redraw()

    def set_axis(self, axis: PlotAxis) -> None:
        """Show another stretch, or what was so at the cursor."""
        self.axis = axis
        self.redraw()

    def cursor_step(self, view: RunView) -> int | None:
        """The step under the cursor; None where there is no cursor."""
        if self.axis.cursor is None:
            return None
        step = step_at(view.state.series, self.axis.cursor, self.axis.by)
        return None if math.isnan(step) else round(step)

    def at_cursor(self, view: RunView, name: str, newest: float | None) -> float | None:
        """A series' value at the cursor; `newest` where there is no cursor."""
        step = self.cursor_step(view)
        return newest if step is None else value_at(view.state.series[name], step)

    def on_resize(self) -> None:
        self.redraw()

    def redraw(self) -> None:
        """Draw the view that was shown last."""
        width, height = self.content_size
        if self.view is not None and self.is_attached and width > 0 and height > 0:
            self.drawn = self.view
            self.remove_class("prose")
            self.update(self.draw(self.view, width, height), layout=False)

    def draw(self, view: RunView, width: int, height: int) -> VisualType:
        """The content for `width` x `height` cells."""
        raise NotImplementedError

    def prose(self, words: str) -> Content:
        """Why there is nothing to show: whole sentences, which are wrapped where rows are cut."""
        self.add_class("prose")
        return Content.styled(safe_text(words), "$foreground-muted")

    def set_legend(self, legend: Content) -> None:
        """Words about the content: on the lower border, or behind the title where there is no lower border."""
        has_bottom = bool(self.styles.border_bottom[0])
        self.border_subtitle = legend if has_bottom else ""
        self.border_title = Content(self.title) if has_bottom else Content.assemble(self.title, "  ", legend)

    def rgb(self, variable: str) -> Rgb:
        """A theme colour for what cannot take theme variables (plots)."""
        color = Color.parse(self.app.theme_variables.get(variable, "#808080"))
        return color.rgb
