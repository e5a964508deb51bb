"""Round numbers along an axis and how they are written, for plots in the terminal and in files."""

from __future__ import annotations

import math

from gpuworkbench.state.curves import By


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


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high` (both above 0), powers alone where those are too many.

    Within less than about a decade, round numbers as `nice_ticks` chooses them.
    """
    if not 0 < low < high or not math.isfinite(high):
        return []
    powers = [10.0**exponent for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    inside = [p * factor for p in powers for factor in (1, 2, 5) if low <= p * factor <= high]
    if len(inside) < 3:
        return [tick for tick in nice_ticks(low, high, count) if tick > 0]
    return inside if len(inside) <= 2 * count else [p for p in powers if low <= p <= high]


def axis_unit(by: By, longest: float) -> tuple[float, str]:
    """What an axis counts in: the size of its unit, and the unit's name behind the numbers."""
    if by != "time":
        return 1.0, ""
    units = ((86400.0, " d"), (3600.0, " h"), (60.0, " min"))
    return next((unit for unit in units if longest > 3 * unit[0]), (1.0, " s"))
