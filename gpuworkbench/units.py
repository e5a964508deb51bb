"""The one place where bytes, seconds and counts become text. Everything else computes in bytes and seconds."""

from __future__ import annotations

import math
import re

NOT_AVAILABLE = "n/a"
KIB = 1024
MIB = 1024**2
GIB = 1024**3


def gib(num_bytes: float) -> float:
    """Bytes as GiB."""
    return num_bytes / GIB


def format_bytes(num_bytes: float | None) -> str:
    """`1536` -> `1.5 KiB`; `None` -> `n/a`."""
    if num_bytes is None or not math.isfinite(num_bytes):
        return NOT_AVAILABLE
    if abs(num_bytes) < KIB:
        return f"{int(num_bytes)} B"
    for unit, size in (("KiB", KIB), ("MiB", MIB)):
        if round(abs(num_bytes) / size, 1) < 1024:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / GIB:.2f} GiB"


def simulated_card_name(limit_gib: float) -> str:
    """How a card whose memory is capped is called wherever it shows: `simulated card, 16 GiB`."""
    return f"simulated card, {limit_gib:g} GiB"


_SIZE = re.compile(
    r"(?P<whole>\d{1,15})(\.(?P<fraction>\d{1,3}))? ?(?P<unit>[kmgt]?)(?P<binary>i?)b?", re.IGNORECASE | re.ASCII
)


def parse_bytes(text: str) -> int:
    """`5GB` -> 5,000,000,000; `500MiB`, `1.5G` and plain bytes too. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match["binary"] and not match["unit"]):
        raise ValueError(f"{text[:80]!r} is not a size such as 5GB or 500MiB")
    power = " kmgt".index(match["unit"].lower() or " ")
    scale: int = (KIB if match["binary"] else 1000) ** power
    fraction = match["fraction"] or "0"
    size = int(match["whole"]) * scale + int(fraction) * scale // int("1" + "0" * len(fraction))
    if size < 1:
        raise ValueError("a size is at least one byte")
    return size


def format_duration(seconds: float | None) -> str:
    """`3725` -> `1 h 02 min`; `75` -> `1 min 15 s`; `0.25` -> `0.25 s`; `None` -> `n/a`."""
    if seconds is None or not math.isfinite(seconds):
        return NOT_AVAILABLE
    if round(seconds, 2) < 10:
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


_COUNT = re.compile(
    r"(?P<whole>\d{1,3}(?:[_,]\d{3})+|\d{1,19})(?:\.(?P<fraction>\d{1,18}))?(?:e\+?(?P<power>\d{1,2})|(?P<unit>[kmgbt]))?",
    re.IGNORECASE | re.ASCII,
)
_POWERS = {"k": 3, "m": 6, "g": 9, "b": 9, "t": 12}
MAX_PARSED_COUNT = 10**18


def parse_count(text: str) -> int:
    """`10B`, `1e9`, `2.5M`, `1_000_000` and `1,000,000` as a whole number. Raises ValueError."""
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:80]!r} is not a count such as 1000000, 1e9 or 10B")
    power = int(match["power"] or _POWERS.get((match["unit"] or "").lower(), 0))
    fraction = match["fraction"] or ""
    digits = int(re.sub("[_,]", "", match["whole"]) + fraction)
    scale: int = 10**power
    count, rest = divmod(digits * scale, int("1" + "0" * len(fraction)))
    if rest:
        raise ValueError(f"{text[:80]!r} is not a whole number")
    if count > MAX_PARSED_COUNT:
        raise ValueError(f"{text[:80]!r} is more than 1e18")
    return count


def format_count(count: float | None) -> str:
    """`124439808` -> `124.4M`; `None` -> `n/a`."""
    if count is None or not math.isfinite(count):
        return NOT_AVAILABLE
    if round(abs(count)) < 1000:
        return f"{count:.0f}"
    for unit, size in (("k", 1e3), ("M", 1e6), ("B", 1e9)):
        if round(abs(count) / size, 1) < 1000:
            return f"{count / size:.1f}{unit}"
    return f"{count / 1e12:.1f}T"


def format_number(value: float | None, digits: int = 4) -> str:
    """A metric with `digits` decimals; `None` (unknown or non-finite) -> `n/a`."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.3e}"
