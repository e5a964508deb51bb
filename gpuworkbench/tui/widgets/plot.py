"""The one place that knows plotext: curves in, styled text out. plotext draws on a global figure: app thread only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotext
from rich.text import Text

from gpuworkbench.state.curves import By
from gpuworkbench.state.ticks import axis_unit, log_ticks, nice_ticks, tick_label

Rgb = tuple[int, int, int]
MAX_ABS_Y = 1e100  # beyond, differences overflow


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one metric; drawn as a line of braille dots, or with `marker` as separate points."""

    x: np.ndarray
    y: np.ndarray
    color: Rgb
    marker: str | None = None


@dataclass(frozen=True, slots=True)
class Plotted:
    """A drawn plot and where its data columns are, so that a mouse's column can be told as an x."""

    text: Text
    left: int = 0  # cells before the first data column
    columns: int = 0
    low: float = 0.0
    high: float = 0.0

    def x_at(self, column: int) -> float | None:
        """The x of a cell counted from the plot's left; None beside the data."""
        at = column - self.left
        if self.columns < 2 or not 0 <= at < self.columns:
            return None
        return self.low + at / (self.columns - 1) * (self.high - self.low)


def draw(
    curves: Sequence[Curve],
    width: int,
    height: int,
    *,
    axis_color: Rgb,
    log_y: bool = False,
    window: tuple[float, float] | None = None,
    cursor: tuple[float, Rgb] | None = None,
    by: By = "step",
) -> Plotted:
    """All curves in `width` x `height` cells with axes; empty where there is no point or no room.

    With `log_y` points at or below 0 are left out. `window`: the stretch of x to draw (default: all). `cursor`: an x
    with a vertical line, and its colour. `by` says what x counts, for the labels.
    """
    known = [_known(curve, log_y) for curve in curves]
    if window is not None:
        known = [_within(curve, *window) for curve in known]
    shown = [thin for curve in known if len((thin := _decimated(curve, 4 * width)).x)]
    if not shown or width < 16 or height < 4:
        return Plotted(Text())
    plotext.clear_figure()
    plotext.limitsize(False, False)
    plotext.plotsize(width, height)
    plotext.theme("clear")
    plotext.ticks_color(axis_color)
    plotext.xaxes(True, False)
    plotext.yaxes(True, False)
    low, high = _x_range(shown, window)
    if cursor is not None and low <= cursor[0] <= high:
        plotext.vline(cursor[0], cursor[1])
    for curve in shown:
        y = np.log10(curve.y) if log_y else curve.y
        paint = plotext.scatter if curve.marker else plotext.plot
        paint(curve.x.tolist(), y.tolist(), marker=curve.marker or "braille", color=curve.color)
    _set_x_axis(low, high, width, by)
    left = _set_y_axis(shown, height, log_y) + 1
    text = Text.from_ansi(plotext.build().rstrip("\n"), no_wrap=True)
    return Plotted(text, left, width - left, low, high)


def _known(curve: Curve, log_y: bool) -> Curve:
    mask = np.isfinite(curve.x) & (np.abs(curve.y) < MAX_ABS_Y)  # also drops NaN
    if log_y:
        mask &= curve.y > 0
    return curve if mask.all() else Curve(curve.x[mask], curve.y[mask], curve.color, curve.marker)


def _decimated(curve: Curve, max_points: int) -> Curve:
    """At most about `max_points`: the lowest and highest point of each of `max_points / 2` stretches."""
    n = len(curve.x)
    if n <= max_points:
        return curve
    edges = np.linspace(0, n, max_points // 2 + 1).astype(int)
    keep: set[int] = {0, n - 1}
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = curve.y[begin:end]
        keep.update((begin + int(part.argmin()), begin + int(part.argmax())))
    index = np.array(sorted(keep))
    return Curve(curve.x[index], curve.y[index], curve.color, curve.marker)


def _within(curve: Curve, low: float, high: float) -> Curve:
    """The part of a curve from `low` to `high`; a line keeps its way to the edges."""
    inside = (curve.x >= low) & (curve.x <= high)
    x, y = curve.x[inside], curve.y[inside]
    if curve.marker is None and len(curve.x):
        edges = [edge for edge in (low, high) if curve.x[0] < edge < curve.x[-1]]
        at = np.interp(edges, curve.x, curve.y)
        x, y = np.concatenate((x, edges)), np.concatenate((y, at))
        order = np.argsort(x, kind="stable")
        x, y = x[order], y[order]
    return Curve(x, y, curve.color, curve.marker)


def _x_range(curves: Sequence[Curve], window: tuple[float, float] | None) -> tuple[float, float]:
    low, high = window or (min(float(c.x.min()) for c in curves), max(float(c.x.max()) for c in curves))
    return (low, high) if high > low else (low - 1, low + 1)


def _set_x_axis(low: float, high: float, width: int, by: By) -> None:
    unit, name = axis_unit(by, high)
    ticks = nice_ticks(low / unit, high / unit, max(width // 14, 2))
    if by == "step":
        ticks = [tick for tick in ticks if tick == int(tick)]
    plotext.xlim(low, high)
    plotext.xticks([tick * unit for tick in ticks], [f"{tick_label(tick)}{name}" for tick in ticks])


def _set_y_axis(curves: Sequence[Curve], height: int, log_y: bool) -> int:
    """Limits and labels; returns the labels' width."""
    low = min(float(curve.y.min()) for curve in curves)
    high = max(float(curve.y.max()) for curve in curves)
    if high <= low:
        margin = abs(high) * 0.1 or 1.0
        low, high = (low / 2 if log_y else low - margin), high + margin
    count = max(height // 3, 3)
    ticks = log_ticks(low, high, count) if log_y else nice_ticks(low, high, count)
    if log_y:
        plotext.ylim(math.log10(low), math.log10(high))
    else:
        plotext.ylim(low, high)
    # Two ticks on one row: which label plotext then writes differs from process to process.
    while len(ticks) > max((height - 2) // 2, 1):
        ticks = ticks[::2]
    labels = [tick_label(tick) for tick in ticks]
    plotext.yticks([math.log10(tick) for tick in ticks] if log_y else ticks, labels)
    return max(map(len, labels), default=0)
