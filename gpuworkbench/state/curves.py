"""Curves as they are drawn, compared and exported: a metric over steps, tokens or time; smoothing; values at a step.

Runs are compared in more than one unit, since equal steps need not be equal tokens, nor equal time. Screen and command
line use these functions, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from gpuworkbench.events.series import Floats, Points

By = Literal["step", "tokens", "time"]
AXES: tuple[By, ...] = get_args(By)
AXIS_WORDS: Mapping[str, str] = {"step": "optimizer steps", "tokens": "training tokens", "time": "time of training"}
SMOOTHING = (0.0, 0.6, 0.9, 0.97, 0.99)  # factors of `ema` that a key steps through


def on_axis(series: Mapping[str, Points], steps: Floats, by: By) -> Floats:
    """Where `steps` (N,) lie on an axis: steps, tokens seen, or seconds of training over all attempts.

    NaN where the run has told nothing. Between known steps the value is interpolated; pauses and the time between
    attempts are not part of the time, work that a crash made the run do again is.
    """
    if by == "step":
        return steps
    known_x, known_y = _scale(series, by)
    if not len(known_x):
        return np.full(len(steps), np.nan)
    placed: Floats = np.interp(steps, known_x, known_y)
    return placed


def step_at(series: Mapping[str, Points], x: float, by: By) -> float:
    """The step (not rounded) at `x` on an axis: the inverse of `on_axis`; NaN where nothing is known."""
    if by == "step":
        return x
    known_x, known_y = _scale(series, by)
    if not len(known_x):
        return float("nan")
    return float(np.interp(x, np.maximum.accumulate(known_y), known_x))


def curve(series: Mapping[str, Points], name: str, by: By = "step", smoothing: float = 0.0) -> Points:
    """The points of one series on an axis, smoothed by `ema`."""
    points = series[name]
    y = ema(points, smoothing)
    x = on_axis(series, points.x, by)
    known = np.isfinite(x)
    return Points(x, y) if known.all() else Points(x[known], y[known])


def ema(points: Points, factor: float) -> Floats:
    """Exponential moving average: weights `factor` ** (steps ago), normalised, so that it starts without a bias.

    For points one step apart this is Adam's bias-corrected average (Kingma and Ba 2015, section 3), the one that
    TensorBoard draws. Thinned points count by their distance in steps. `factor` 0 gives the points themselves.
    """
    if not 0.0 <= factor < 1.0:
        raise ValueError(f"smoothing is {factor}, must be at least 0 and below 1")
    if factor == 0.0 or len(points) < 2:
        return points.y
    decays = (factor ** np.diff(points.x)).tolist()
    y = points.y.tolist()
    total, weight = y[0], 1.0
    smooth = [total]
    for value, decay in zip(y[1:], decays, strict=True):
        total, weight = total * decay + value, weight * decay + 1.0
        smooth.append(total / weight)
    return np.array(smooth)


def value_at(points: Points, step: float) -> float | None:
    """The newest value at or before `step`; None before the first."""
    index = int(np.searchsorted(points.x, step, side="right")) - 1
    return float(points.y[index]) if index >= 0 else None


def first_at_or_below(points: Points, target: float) -> float | None:
    """The x of the first point whose y is `target` or less; None where there is none."""
    found = np.flatnonzero(points.y <= target)
    return float(points.x[found[0]]) if len(found) else None


def _scale(series: Mapping[str, Points], by: By) -> tuple[Floats, Floats]:
    """Steps and their place on the axis. Nothing is trained at step 0, and no time has passed before the first step."""
    points = series["tokens_seen" if by == "tokens" else "elapsed_s"]
    if not len(points) or points.x[0] <= 0:
        return points.x, points.y
    origin = 0.0 if by == "tokens" else points.x[0] - 1
    return np.concatenate(([origin], points.x)), np.concatenate(([0.0], points.y))
