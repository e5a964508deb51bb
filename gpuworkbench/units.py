"""The one place where bytes, seconds and counts become text. Everything else computes in bytes and seconds."""

from __future__ import annotations

import math

NOT_AVAILABLE = "n/a"
KIB = 1024
MIB = 1024**2
GIB = 1024**3


def gib(num_bytes: float) -> float:
    """Bytes as GiB."""
    return num_bytes / GIB


def format_bytes(num_bytes: float | None) -> str:
    """`1536` -> `1.5 KiB`; `None` -> `n/a`."""
    if num_bytes is None:
        return NOT_AVAILABLE
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.2f} {unit}" if unit == "GiB" else f"{num_bytes / size:.1f} {unit}"
    return f"{int(num_bytes)} B"


def format_duration(seconds: float | None) -> str:
    """`3725` -> `1 h 02 min`; `75` -> `1 min 15 s`; `0.25` -> `0.25 s`; `None` -> `n/a`."""
    if seconds is None or not math.isfinite(seconds):
        return NOT_AVAILABLE
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, secs = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {secs:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d} h"


def format_count(count: float | None) -> str:
    """`124439808` -> `124.4M`; `None` -> `n/a`."""
    if count is None:
        return NOT_AVAILABLE
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:.0f}"


def format_number(value: float | None, digits: int = 4) -> str:
    """A metric with `digits` decimals; `None` (unknown or non-finite) -> `n/a`."""
    return NOT_AVAILABLE if value is None else f"{value:.{digits}f}"
