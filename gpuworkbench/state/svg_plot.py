"""Curves as an SVG picture: lines and points as vectors, ticks, a legend. Nothing in it but numbers and safe text."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpuworkbench.events.series import Floats
from gpuworkbench.state.curves import AXIS_WORDS, By
from gpuworkbench.state.ticks import axis_unit, log_ticks, nice_ticks, tick_label
from gpuworkbench.text import safe_text

WIDTH, HEIGHT = 960, 540
LEFT, RIGHT, TOP, LINE = 80, 20, 44, 18
FONT = 'font-family="sans-serif" font-size="13"'
# Okabe and Ito (2008): told apart by colour-blind people too; points have shapes besides.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b4b8a", "#000000")
SHAPES = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True, slots=True)
class Line:
    """One curve, (N,) and (N,) float64; as separate points where `has_points`."""

    label: str
    x: Floats
    y: Floats
    has_points: bool = False


def svg_plot(title: str, lines: Sequence[Line], y_label: str, by: By = "step", *, is_log: bool = False) -> str:
    """The picture as text. Values that cannot be drawn (not finite; 0 or less on a logarithmic axis) are left out."""
    known = [_known(line, is_log) for line in lines]
    shown = [line for line in known if len(line.x)]
    bottom = HEIGHT - 60 - LINE * max(len(shown) - 1, 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        svg_text(WIDTH / 2, 24, title, anchor="middle", size=16),
    ]
    if not shown:
        return "\n".join([*parts, svg_text(WIDTH / 2, HEIGHT / 2, "no value to draw", anchor="middle"), "</svg>", ""])
    x_low, x_high = _span([line.x for line in shown], is_log=False)
    y_low, y_high = _span([line.y for line in shown], is_log=is_log)

    def place_x(x: Floats) -> Floats:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def place_y(y: Floats) -> Floats:
        low, high = (math.log10(y_low), math.log10(y_high)) if is_log else (y_low, y_high)
        value = np.log10(y) if is_log else y
        return bottom - (value - low) / (high - low) * (bottom - TOP)

    unit, unit_name = axis_unit(by, x_high)
    for tick in nice_ticks(x_low / unit, x_high / unit, 8):
        at = float(place_x(np.array(tick * unit)))
        parts.append(f'<path d="M{at:.1f} {TOP}V{bottom}" stroke="#e4e4e4"/>')
        parts.append(svg_text(at, bottom + 18, f"{tick_label(tick)}{unit_name}", anchor="middle"))
    for tick in (log_ticks if is_log else nice_ticks)(y_low, y_high, 7):
        at = float(place_y(np.array(tick)))
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>')
        parts.append(svg_text(LEFT - 8, at + 4, tick_label(tick), anchor="end"))
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="#555555"/>')
    parts.append(svg_text((LEFT + WIDTH - RIGHT) / 2, bottom + 38, AXIS_WORDS[by], anchor="middle"))
    parts.append(
        f'<g transform="translate(18 {(TOP + bottom) / 2:.0f}) rotate(-90)">{svg_text(0, 0, y_label, "middle")}</g>'
    )
    for index, line in enumerate(shown):
        color, shape = COLORS[index % len(COLORS)], SHAPES[index % len(SHAPES)]
        points = list(zip(place_x(line.x).tolist(), place_y(line.y).tolist(), strict=True))
        if line.has_points:
            parts += [_point(shape, x, y, color) for x, y in points]
        else:
            path = "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
            parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        at = HEIGHT - 10 - LINE * (len(shown) - 1 - index)
        mark = f'<path d="M{LEFT} {at - 4}h24" stroke="{color}" stroke-width="2"/>'
        parts.append(_point(shape, LEFT + 12, at - 4, color) if line.has_points else mark)
        parts.append(svg_text(LEFT + 32, at, line.label))
    return "\n".join([*parts, "</svg>", ""])


def _known(line: Line, is_log: bool) -> Line:
    mask = np.isfinite(line.x) & np.isfinite(line.y) & (np.abs(line.y) < 1e100)
    if is_log:
        mask &= line.y > 0
    return Line(line.label, line.x[mask], line.y[mask], line.has_points)


def _span(columns: Sequence[Floats], *, is_log: bool) -> tuple[float, float]:
    low, high = min(float(c.min()) for c in columns), max(float(c.max()) for c in columns)
    if high > low:
        return low, high
    margin = abs(high) * 0.1 or 1.0
    return (low / 2 if is_log else low - margin), high + margin


def svg_text(x: float, y: float, text: str, anchor: str = "start", size: int = 13) -> str:
    """A line of text; whatever it is, it is only text."""
    shown = html.escape(safe_text(text, max_chars=200))
    font = FONT.replace("13", str(size))
    return f'<text x="{x:.1f}" y="{y:.1f}" {font} fill="#222222" text-anchor="{anchor}">{shown}</text>'


def _point(shape: str, x: float, y: float, color: str) -> str:
    corners = {
        "square": ((-3, -3), (3, -3), (3, 3), (-3, 3)),
        "triangle": ((0, -4), (4, 3), (-4, 3)),
        "diamond": ((0, -4), (4, 0), (0, 4), (-4, 0)),
    }
    if shape == "circle":
        return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="3.5" fill="{color}"/>'
    path = "L".join(f"{x + dx:.2f} {y + dy:.2f}" for dx, dy in corners[shape])
    return f'<path d="M{path}Z" fill="{color}"/>'
