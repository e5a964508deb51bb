"""A plan's verdict: what is short, where, and by how much."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from gpuworkbench.plan.analytic import Estimate, Verdict, verdict
from gpuworkbench.plan.targets import Target

ORDER = (Verdict.FITS, Verdict.TIGHT, Verdict.DOES_NOT_FIT)


class Shortage(Struct, frozen=True):
    """Something that there is too little of; all but the first are about this machine."""

    what: str  # card memory, host memory, pinned memory, disk
    needed_bytes: int
    limit_bytes: int


def shortages(predicted: Estimate, target: Target) -> list[Shortage]:
    """What the run needs more of than there is."""
    return [Shortage(*each) for each in _compared(predicted, target) if each[1] > each[2]]


def judge(predicted: Estimate, target: Target) -> Verdict:
    """The worst of the verdicts; memory alone may be tight, a disk is big enough or not."""
    found = [Verdict.FITS]
    for what, needed, limit in _compared(predicted, target):
        here = verdict(needed, limit)
        found.append(Verdict.FITS if what == "disk" and here is Verdict.TIGHT else here)
    return max(found, key=ORDER.index)


def _compared(predicted: Estimate, target: Target) -> Iterator[tuple[str, int, int]]:
    if target.kind == "cuda" and target.limit_bytes is not None:
        yield "card memory", predicted.total_bytes, target.limit_bytes
    if target.host_bytes is not None:
        yield "host memory", predicted.host_bytes, target.host_bytes
    if target.pinned_bytes is not None:
        yield "pinned memory", predicted.pinned_bytes, target.pinned_bytes
    if target.disk_bytes:  # no room at all is told by whoever makes the directory
        yield "disk", predicted.disk_bytes, target.disk_bytes
