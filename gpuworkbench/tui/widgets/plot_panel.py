"""Panels with a plot: the mouse on it, and what it shares with the other panels (axis, cursor)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.text import Text
from textual.content import Content
from textual.events import MouseDown, MouseEvent, MouseMove, MouseScrollDown, MouseScrollUp, MouseUp
from textual.message import Message

from gpuworkbench.events.series import Points
from gpuworkbench.state.curves import By, on_axis
from gpuworkbench.tui.plot_axis import PlotAxis, Range
from gpuworkbench.tui.widgets.panel import Panel
from gpuworkbench.tui.widgets.plot import Curve, Plotted, Rgb, draw

ZOOM_IN, ZOOM_OUT = 0.8, 1.25
MIN_PLOT_HEIGHT, MIN_PLOT_WIDTH = 6, 30  # below, a panel that has rows too shows these alone


class PlotZoomed(Message):
    """The wheel was turned: `factor` times as wide a stretch around `center`."""

    def __init__(self, factor: float, center: float | None) -> None:
        super().__init__()
        self.factor = factor
        self.center = center


class PlotPanned(Message):
    """The plot was dragged by `distance` in units of its axis."""

    def __init__(self, distance: float) -> None:
        super().__init__()
        self.distance = distance


class PlotPointed(Message):
    """A place of the plot was clicked."""

    def __init__(self, x: float) -> None:
        super().__init__()
        self.x = x


class PlotMouse:
    """Wheel, drag and click on a plot as messages. Mixed into a widget, which sets `plotted` when it draws."""

    plotted: Plotted = Plotted(Text())
    _dragged_from: int | None = None
    _was_dragged = False

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        """Closer."""
        self._zoom(event, ZOOM_IN)

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        """Further away."""
        self._zoom(event, ZOOM_OUT)

    def on_mouse_down(self, event: MouseDown) -> None:
        """A drag or a click begins."""
        if self._column(event) is not None and self.plotted.columns:
            self._dragged_from, self._was_dragged = event.x, False
            self.capture_mouse()  # type: ignore[attr-defined]

    def on_mouse_move(self, event: MouseMove) -> None:
        """While dragged: the curve goes with the mouse."""
        if self._dragged_from is None or event.x == self._dragged_from:
            return
        plot = self.plotted
        cells, self._dragged_from, self._was_dragged = event.x - self._dragged_from, event.x, True
        if plot.columns > 1:
            self.post_message(PlotPanned(-cells * (plot.high - plot.low) / (plot.columns - 1)))  # type: ignore[attr-defined]

    def on_mouse_up(self, event: MouseUp) -> None:
        """A click sets the cursor."""
        if self._dragged_from is None:
            return
        self._dragged_from = None
        self.release_mouse()  # type: ignore[attr-defined]
        column = self._column(event)
        x = self.plotted.x_at(column) if column is not None and not self._was_dragged else None
        if x is not None:
            self.post_message(PlotPointed(x))  # type: ignore[attr-defined]

    def _zoom(self, event: MouseEvent, factor: float) -> None:
        if not self.plotted.columns:
            return
        event.stop()
        event.prevent_default()
        column = self._column(event)
        center = self.plotted.x_at(column) if column is not None else None
        self.post_message(PlotZoomed(factor, center))  # type: ignore[attr-defined]

    def _column(self, event: MouseEvent) -> int | None:
        offset = event.get_content_offset(self)  # type: ignore[arg-type]
        return None if offset is None else offset.x


class PlotPanel(PlotMouse, Panel):
    """A panel of the live screen that has a plot, of these SERIES; NAME is its exports' beginning."""

    NAME = ""
    SERIES: tuple[str, ...] = ()
    is_plot = True

    def plot(self, curves: Sequence[Curve], width: int, height: int, *, log_y: bool = False) -> Content:
        """The curves with the shared axis and cursor; empty where there is nothing to draw or no room."""
        axis = self.axis
        cursor = None if axis.cursor is None else (axis.cursor, self.rgb("accent"))
        self.plotted = draw(
            curves,
            width,
            height,
            axis_color=self.rgb("foreground-darken-3"),
            log_y=log_y,
            window=axis.window,
            cursor=cursor,
            by=axis.by,
        )
        return Content.from_rich_text(self.plotted.text)

    def with_plot(self, rows: Content, curves: Sequence[Curve], width: int, height: int) -> Content:
        """Rows, and below them a plot where the panel is large enough for both."""
        room = height - len(rows.plain.split("\n")) - 1
        if room < MIN_PLOT_HEIGHT or width < MIN_PLOT_WIDTH:
            self.plotted = Plotted(Text())
            return rows
        plot = self.plot(curves, width, room)
        return Content("\n\n").join([rows, plot]) if plot else rows


def axis_curve(series: Mapping[str, Points], name: str, axis: PlotAxis, color: Rgb, marker: str | None = None) -> Curve:
    """The points of a series as they are, on the axis."""
    points = series[name]
    return Curve(on_axis(series, points.x, axis.by), points.y, color, marker)


def full_range(series: Mapping[str, Points], by: By) -> Range:
    """From the first to the last thing that a run has told, on an axis; (0, 1) where it has told nothing."""
    ends = [(float(points.x[0]), float(points.x[-1])) for points in series.values() if len(points)]
    if not ends:
        return 0.0, 1.0
    steps = np.array([min(low for low, _ in ends), max(high for _, high in ends)])
    low, high = on_axis(series, steps, by).tolist()
    return (low, high) if high > low else (0.0, 1.0)
