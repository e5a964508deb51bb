"""Means with their intervals as an SVG picture, a row each, around a reference line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gpuworkbench.state.svg_plot import COLORS, svg_text
from gpuworkbench.state.ticks import nice_ticks, tick_label

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 960, 190, 175, 50, 28, 50


class IntervalRow(NamedTuple):
    """A mean and its interval; ends may be infinite. `mark` stands before the number ("<=": only a bound)."""

    label: str
    mean: float
    low: float
    high: float
    mark: str = ""


def svg_intervals(title: str, rows: Sequence[IntervalRow], reference: float) -> str:
    """The picture as text. Intervals that include `reference` are drawn in grey."""
    height = TOP + ROW * max(len(rows), 1) + BOTTOM
    ends = [reference, *(end for row in rows for end in row[1:4] if math.isfinite(end))]
    low, high = min(ends), max(ends)
    margin = 0.05 * (high - low) or 0.1
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return LEFT + (min(max(value, low), high) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    bottom = height - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        svg_text(WIDTH / 2, 24, title, anchor="middle", size=16),
    ]
    for tick in nice_ticks(low, high, 8):
        parts.append(f'<path d="M{place(tick):.1f} {TOP - 10}V{bottom}" stroke="#e4e4e4"/>')
        parts.append(svg_text(place(tick), bottom + 18, tick_label(tick), anchor="middle"))
    at = place(reference)
    parts.append(f'<path d="M{at:.1f} {TOP - 10}V{bottom}" stroke="#222222" stroke-dasharray="4 3"/>')
    for index, row in enumerate(rows):
        y = TOP + ROW * index + ROW / 2
        color = "#777777" if row.low <= reference <= row.high else COLORS[0 if row.low > reference else 1]
        parts.append(svg_text(LEFT - 12, y + 4, row.label, anchor="end"))
        parts.append(f'<path d="M{place(row.low):.1f} {y}H{place(row.high):.1f}" stroke="{color}" stroke-width="3"/>')
        parts.append(f'<circle cx="{place(row.mean):.1f}" cy="{y}" r="5" fill="{color}"/>')
        text = f"{row.mark}{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]"
        parts.append(svg_text(WIDTH - RIGHT + 8, y + 4, text, size=12))
    return "\n".join([*parts, "</svg>", ""])
