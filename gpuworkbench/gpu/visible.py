"""CUDA_VISIBLE_DEVICES: which of the machine's cards a CUDA program sees, and in which order.

Rules of the CUDA programming guide ("CUDA environment variables"): a comma-separated list of indices, or of UUIDs
which may be shortened; the first invalid entry hides itself and all that follow; an entry named twice hides all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

VARIABLE = "CUDA_VISIBLE_DEVICES"
_INDEX = re.compile(r"\s*([+-]?\d+)")

T = TypeVar("T")


def visible(
    devices: Sequence[T], uuid_of: Callable[[T], str | None], value: str | None, *, whole_cards: int | None = None
) -> list[T]:
    """The devices that `value` leaves, in its order; None (unset) leaves the whole cards as they are.

    `devices` are the machine's cards in NVML's order, followed by their MIG instances; `whole_cards` of them can be
    named by an index (default: all). UUIDs begin with GPU- or MIG-.
    """
    count = len(devices) if whole_cards is None else whole_cards
    if value is None:
        return list(devices[:count])
    chosen: list[int] = []
    for entry in value.split(","):
        position = _position(entry.strip(), devices, uuid_of, count)
        if position is None:
            break
        if position in chosen:
            return []
        chosen.append(position)
    return [devices[position] for position in chosen]


def _position(entry: str, devices: Sequence[T], uuid_of: Callable[[T], str | None], count: int) -> int | None:
    if entry.startswith(("GPU-", "MIG-")):
        matches = [place for place, device in enumerate(devices) if (uuid_of(device) or "").startswith(entry)]
        return matches[0] if len(matches) == 1 else None
    number = _INDEX.match(entry)
    if not number:
        return None
    position = int(number[1])
    return position if 0 <= position < count else None
