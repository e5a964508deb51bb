"""Keys and mouse of screens with plots: one `PlotAxis` for all their panels."""

from __future__ import annotations

from textual.binding import Binding, BindingType

from gpuworkbench.state.curves import By
from gpuworkbench.tui.plot_axis import PlotAxis, Range
from gpuworkbench.tui.widgets.plot_panel import ZOOM_IN, ZOOM_OUT, PlotPanned, PlotPointed, PlotZoomed

PAN_SHARE = 0.25


def plot_bindings(prefix: str) -> list[BindingType]:
    """The keys that act on plots. Left and right come first, or a scrolling widget would take them."""

    def key(keys: str, action: str, text: str, name: str, tooltip: str, *, first: bool = False) -> Binding:
        return Binding(keys, action, text, id=f"{prefix}.{name}", tooltip=tooltip, show=False, priority=first)

    return [
        key("x", "next_axis", "Axis", "axis", "Over steps, tokens or time"),
        key("l", "log_axis", "Log axis", "log_axis", "Logarithmic loss axis, and back"),
        key("left_square_bracket", "smooth(-1)", "Less smooth", "less_smooth", "Weaker smoothing (EMA)"),
        key("right_square_bracket", "smooth(1)", "Smoother", "smoother", "Stronger smoothing (EMA, factor shown)"),
        key("plus,equals_sign", "zoom_plot(True)", "Zoom in", "zoom_in", "A shorter stretch, around the cursor"),
        key("minus", "zoom_plot(False)", "Zoom out", "zoom_out", "A longer stretch"),
        key("comma", "pan(-1)", "Earlier", "earlier", "Move what is shown back"),
        key("full_stop", "pan(1)", "Later", "later", "Move what is shown on"),
        key("left", "scrub(-1)", "Cursor back", "cursor_back", "What was so before; all panels follow", first=True),
        key("right", "scrub(1)", "Cursor on", "cursor_on", "What was so after; all panels follow", first=True),
        key("shift+left", "scrub(-10)", "Cursor far back", "cursor_far_back", "Ten times as far", first=True),
        key("shift+right", "scrub(10)", "Cursor far on", "cursor_far_on", "Ten times as far", first=True),
        key("0", "whole", "Everything", "whole", "The whole run, without a cursor"),
    ]


class PlotActions:
    """Mixed into a screen, which says what there is to show (`plot_range`) and draws anew (`axis_changed`)."""

    axis = PlotAxis()

    def plot_range(self) -> Range:
        """All there is on the axis."""
        raise NotImplementedError

    def convert_x(self, x: float, old: By, new: By) -> float:
        """A place on one axis as one on another; NaN where that is not known."""
        raise NotImplementedError

    def axis_changed(self) -> None:
        """Draw with the new axis."""
        raise NotImplementedError

    def set_axis(self, axis: PlotAxis) -> None:
        """Take another axis, window or cursor."""
        if axis != self.axis:
            self.axis = axis
            self.axis_changed()

    def action_next_axis(self) -> None:
        """Over steps, tokens or time."""
        self.set_axis(self.axis.next_axis(self.convert_x))

    def action_log_axis(self) -> None:
        """Logarithmic, and back."""
        self.set_axis(self.axis.with_log(not self.axis.is_log))

    def action_smooth(self, direction: int) -> None:
        """Stronger or weaker."""
        self.set_axis(self.axis.smoother(direction))

    def action_zoom_plot(self, closer: bool) -> None:
        """A shorter or longer stretch."""
        self.set_axis(self.axis.zoomed(ZOOM_IN if closer else ZOOM_OUT, self.plot_range()))

    def action_pan(self, direction: int) -> None:
        """The stretch before or after."""
        full = self.plot_range()
        low, high = self.axis.shown(full)
        self.set_axis(self.axis.panned(direction * PAN_SHARE * (high - low), full))

    def action_scrub(self, moves: int) -> None:
        """Move the cursor."""
        self.set_axis(self.axis.scrubbed(moves, self.plot_range()))

    def action_whole(self) -> None:
        """Everything, no cursor."""
        self.set_axis(self.axis.whole())

    def on_plot_zoomed(self, message: PlotZoomed) -> None:
        """The wheel."""
        self.set_axis(self.axis.zoomed(message.factor, self.plot_range(), message.center))

    def on_plot_panned(self, message: PlotPanned) -> None:
        """A drag."""
        self.set_axis(self.axis.panned(message.distance, self.plot_range()))

    def on_plot_pointed(self, message: PlotPointed) -> None:
        """A click."""
        self.set_axis(self.axis.with_cursor(message.x, self.plot_range()))
