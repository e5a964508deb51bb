"""Bars, sparklines and columns of text: pure functions from numbers to strings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpuworkbench.plan.waterfall import bar

__all__ = ["bar", "fit_parts", "sparkline"]

_LEVELS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float] | np.ndarray, width: int) -> str:
    """`values` in order as at most `width` columns, each the mean of its share; lowest to highest. Empty for none."""
    data = np.asarray(values, dtype=np.float64)
    data = data[np.isfinite(data)]
    if not len(data) or width <= 0:
        return ""
    if len(data) > width:
        edges = np.linspace(0, len(data), width + 1).astype(int)
        data = np.add.reduceat(data, edges[:-1]) / np.diff(edges)
    low, high = float(data.min()), float(data.max())
    span = high - low
    if span <= abs(high) * 1e-9:
        return _LEVELS[0] * len(data)
    return "".join(_LEVELS[min(int((value - low) / span * 8), 7)] for value in data.tolist())


def fit_parts(parts: Sequence[tuple[int, str]], width: int, separator: str = "  ") -> list[str]:
    """The texts that fit `width` side by side, in their order; the highest numbers go first where room is short."""
    kept = list(parts)
    while len(kept) > 1 and sum(len(text) for _, text in kept) + len(separator) * (len(kept) - 1) > width:
        kept.remove(max(kept, key=lambda part: part[0]))
    return [text for _, text in kept]
