"""The overlaid loss curves of several runs, each with a colour and a marker of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from textual.color import Color
from textual.content import Content
from textual.widgets import Static

from gpuworkbench.events.series import Points
from gpuworkbench.state.compare import Compared
from gpuworkbench.state.curves import curve, step_at, value_at
from gpuworkbench.tui.compare_data import CompareView
from gpuworkbench.tui.plot_axis import PlotAxis, Range
from gpuworkbench.tui.widgets.plot import Curve, draw
from gpuworkbench.tui.widgets.plot_panel import PlotMouse, full_range
from gpuworkbench.tui.widgets.run_looks import Look, looks

Which = Literal["both", "val", "train"]
WHICH: tuple[Which, ...] = ("both", "val", "train")
WHICH_WORDS = {"both": "training and validation loss", "val": "validation loss", "train": "training loss"}
MARKS_ON_A_CURVE = 5
MAX_POINTS = 40
PREDICTED_MARKER = "×"


class ComparePlot(PlotMouse, Static, can_focus=True):
    """Lines are training losses, separate markers validation losses; with one kind alone, lines with markers."""

    def __init__(self) -> None:
        super().__init__("", id="compare-plot", classes="panel", markup=False)
        self.border_title = self.title = "1 Loss"
        self.tooltip = "Nats per token of every run; x, l, v, [ and ] change what is drawn, the wheel zooms"
        self._now: tuple[CompareView, PlotAxis, Which] | None = None

    def show(self, view: CompareView, axis: PlotAxis, which: Which) -> None:
        """Take what to draw."""
        self._now = (view, axis, which)
        self.redraw()

    def on_resize(self) -> None:
        """Other cells."""
        self.redraw()

    def redraw(self) -> None:
        """Draw what was shown last."""
        width, height = self.content_size
        if self._now is None or width <= 0 or height <= 0:
            return
        view, axis, which = self._now
        styles = looks(is_dark=self.app.current_theme.dark)
        curves = [
            piece
            for index, (run, look) in enumerate(zip(view.runs, styles, strict=False))
            for piece in run_curves(run, look, axis, which, index)
        ]
        variables = self.app.theme_variables
        accent, grey = (Color.parse(variables.get(name, "#808080")).rgb for name in ("accent", "foreground-darken-3"))
        cursor = None if axis.cursor is None else (axis.cursor, accent)
        self.plotted = draw(
            curves, width, height, axis_color=grey, log_y=axis.is_log, window=axis.window, cursor=cursor, by=axis.by
        )
        words = axis.words
        self.border_subtitle = ", ".join(part for part in (WHICH_WORDS[which], words) if part)
        if self.plotted.text:
            self.update(Content.from_rich_text(self.plotted.text), layout=False)
        else:
            self.update(Content.styled(_why_empty(view, which), "$foreground-muted"), layout=False)


def run_curves(run: Compared, look: Look, axis: PlotAxis, which: Which, index: int) -> list[Curve]:
    """What is drawn of one run. `index` shifts its markers, so that equal curves do not hide each other's."""
    series = run.state.series
    train = curve(series, "loss", axis.by, axis.smoothing)
    val = curve(series, "val_loss", axis.by)
    found: list[Curve] = []
    if which != "val":
        found.append(Curve(train.x, train.y, look.rgb))
        if which == "train" or not len(val):
            found.append(_thinned(_inside(train, axis), look, MARKS_ON_A_CURVE, index))
        predicted = curve(series, "predicted_loss", axis.by)
        found.append(Curve(predicted.x, predicted.y, look.rgb, PREDICTED_MARKER))
    if which == "val":
        found.append(Curve(val.x, val.y, look.rgb))
    if which != "train":
        found.append(_thinned(_inside(val, axis), look, MAX_POINTS, 0))
    return found


def value_at_cursor(run: Compared, axis: PlotAxis, name: str) -> float | None:
    """A run's loss at the cursor; None before its first and where there is no cursor."""
    if axis.cursor is None:
        return None
    series = run.state.series
    step = step_at(series, axis.cursor, axis.by)
    low, high = full_range(series, axis.by)
    return value_at(series[name], step) if low <= axis.cursor <= high and not math.isnan(step) else None


def range_of(runs: Sequence[Compared], axis: PlotAxis) -> Range:
    """From the first to the last place of any run."""
    ranges = [full_range(run.state.series, axis.by) for run in runs if len(run.state.series["loss"])]
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else (0.0, 1.0)


def _inside(points: Points, axis: PlotAxis) -> Points:
    if axis.window is None:
        return points
    inside = (points.x >= axis.window[0]) & (points.x <= axis.window[1])
    return Points(points.x[inside], points.y[inside])


def _thinned(points: Points, look: Look, count: int, shift: int) -> Curve:
    """At most `count` of the points, evenly, as markers."""
    n = len(points)
    if n > count:
        at = (np.arange(count) + 0.5 + shift / 8) / (count + 1) * n
        index = np.unique(np.minimum(at.astype(int), n - 1))
        points = Points(points.x[index], points.y[index])
    return Curve(points.x, points.y, look.rgb, look.marker)


def _why_empty(view: CompareView, which: Which) -> str:
    if view.is_reading:
        return "reading the logs ..."
    if which == "val" and not any(len(run.state.series["val_loss"]) for run in view.runs):
        return "none of these runs has a validation loss; v shows the training loss"
    if not any(len(run.state.series["loss"]) for run in view.runs):
        return "none of these runs has a step yet"
    return "nothing in this stretch; 0 shows all"
