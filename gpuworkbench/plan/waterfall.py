"""A prediction as rows of a waterfall, and bars of text: shared by `gpuworkbench plan` and the app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gpuworkbench.plan.analytic import Estimate

TOTAL = "total"
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Row(NamedTuple):
    """One part, or the total. `share`: of the total, the total's of the limit. `change`: bytes more than before."""

    label: str
    num_bytes: int
    share: float
    change: int


def rows(predicted: Estimate, *, is_cuda: bool, limit_bytes: int | None, before: Estimate | None = None) -> list[Row]:
    """The parts that are not empty, the largest left in the order of PARTS, and the total last.

    Where there is no card they are the host's, the process itself and what lies beside the tensors included.
    """
    now = parts_of(predicted, is_cuda=is_cuda)
    then = now if before is None else parts_of(before, is_cuda=is_cuda)
    total = sum(now.values())
    found = [
        Row(name, size, size / max(total, 1), size - then.get(name, 0))
        for name, size in now.items()
        if size or then.get(name, 0)
    ]
    return [*found, Row(TOTAL, total, total / max(limit_bytes or total, 1), total - sum(then.values()))]


def parts_of(predicted: Estimate, *, is_cuda: bool) -> Mapping[str, int]:
    """The parts where the run computes; on a host its process too."""
    if is_cuda:
        return predicted.parts
    return {**predicted.parts, "process": predicted.host_bytes - predicted.total_bytes}


def bar(fraction: float | None, width: int, empty: str = "░") -> str:
    """`fraction` of `width` cells filled, to an eighth of a cell; all empty where it is unknown."""
    if width <= 0:
        return ""
    share = min(max(fraction or 0.0, 0.0), 1.0)
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (_EIGHTHS[rest] if rest else "")
    return text + empty * (width - len(text))


def ascii_bar(fraction: float | None, width: int) -> str:
    """The same for encodings without block characters."""
    full = round(min(max(fraction or 0.0, 0.0), 1.0) * max(width, 0))
    return "#" * full + "." * (max(width, 0) - full)
