"""The one place that knows plotext: curves in, styled text out. plotext draws on a global figure: app thread only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotext
from rich.text import Text

Rgb = tuple[int, int, int]
MAX_ABS_Y = 1e100  # beyond, differences overflow


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one metric; drawn as a line of braille dots, or with `marker` as separate points."""

    x: np.ndarray
    y: np.ndarray
    color: Rgb
    marker: str | None = None


def draw(
    curves: Sequence[Curve],
    width: int,
    height: int,
    *,
    axis_color: Rgb,
    log_y: bool = False,
    x_max: float | None = None,
) -> Text:
    """All curves in `width` x `height` cells with axes; empty where there is no point or no room.

    With `log_y` points at or below 0 are left out.
    """
    shown = [known for curve in curves if len((known := _decimated(_known(curve, log_y), 4 * width)).x)]
    if not shown or width < 16 or height < 4:
        return Text()
    plotext.clear_figure()
    plotext.limitsize(False, False)
    plotext.plotsize(width, height)
    plotext.theme("clear")
    plotext.ticks_color(axis_color)
    plotext.xaxes(True, False)
    plotext.yaxes(True, False)
    for curve in shown:
        y = np.log10(curve.y) if log_y else curve.y
        paint = plotext.scatter if curve.marker else plotext.plot
        paint(curve.x.tolist(), y.tolist(), marker=curve.marker or "braille", color=curve.color)
    _set_axes(shown, width, height, log_y, x_max)
    return Text.from_ansi(plotext.build().rstrip("\n"), no_wrap=True)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    if not (math.isfinite(low) and math.isfinite(high)) or count < 1:
        return []
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(math.log(size / raw)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_label(value: float) -> str:
    """`1500` -> `1.5k`, `0.0003` -> `3e-04`, `2.50` -> `2.5`."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4 or (size >= 1000 and value % 100 == 0):
        return f"{value / 1e3:g}k"
    if 0 < size < 1e-3:
        return f"{value:.0e}"
    return f"{value:.4g}"


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


def _set_axes(curves: Sequence[Curve], width: int, height: int, log_y: bool, x_max: float | None) -> None:
    x_low = min(float(curve.x.min()) for curve in curves)
    x_high = max(float(curve.x.max()) for curve in curves) if x_max is None else x_max
    y_low = min(float(curve.y.min()) for curve in curves)
    y_high = max(float(curve.y.max()) for curve in curves)
    if x_high <= x_low:
        x_low, x_high = x_low - 1, x_low + 1
    if y_high <= y_low:
        margin = abs(y_high) * 0.1 or 1.0
        y_low, y_high = (y_low / 2 if log_y else y_low - margin), y_high + margin
    x_ticks = [tick for tick in nice_ticks(x_low, x_high, max(width // 14, 2)) if tick == int(tick)]  # steps
    y_ticks = nice_ticks(y_low, y_high, max(height // 3, 3))
    plotext.xlim(x_low, x_high)
    plotext.xticks(x_ticks, [tick_label(tick) for tick in x_ticks])
    if log_y:
        y_ticks = [tick for tick in y_ticks if tick > 0]
        plotext.ylim(math.log10(y_low), math.log10(y_high))
        plotext.yticks([math.log10(tick) for tick in y_ticks], [tick_label(tick) for tick in y_ticks])
    else:
        plotext.ylim(y_low, y_high)
        plotext.yticks(y_ticks, [tick_label(tick) for tick in y_ticks])
