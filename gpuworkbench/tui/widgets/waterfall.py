"""The predicted bytes of a run by part, each as a bar; and what changed since the preset, where something did."""

from __future__ import annotations

from collections.abc import Mapping

from gpuworkbench.plan.analytic import Estimate
from gpuworkbench.tui.widgets.glyphs import bar
from gpuworkbench.tui.widgets.rows import Part
from gpuworkbench.units import format_bytes

LABEL_WIDTH = 17
VALUE_WIDTH = 11
DELTA_WIDTH = 12
TOTAL = "total"


def waterfall(
    predicted: Estimate, *, is_cuda: bool, limit_bytes: int | None, width: int, before: Estimate | None = None
) -> list[list[Part]]:
    """A row a part, the total against the limit, and what host and disk take. `before` adds a column of changes."""
    now = _parts(predicted, is_cuda)
    then = now if before is None else _parts(before, is_cuda)
    total = sum(now.values())
    room = max(width - LABEL_WIDTH - VALUE_WIDTH - 1 - (DELTA_WIDTH if then != now else 0), 4)
    rows = [
        _row(name, size, size / max(total, 1), room, size - then[name])
        for name, size in now.items()
        if size or then[name]
    ]
    rows.append(_row(TOTAL, total, total / max(limit_bytes or total, 1), room, total - sum(then.values())))
    where = "card" if is_cuda else "host"
    disk = f"{where} has {format_bytes(limit_bytes)}, disk {format_bytes(predicted.disk_bytes)}"
    return [*rows, [(disk, "$foreground-muted")]]


def format_change(num_bytes: int) -> str:
    """`+1.20 GiB`, `-80.0 MiB`; empty for none."""
    return "" if not num_bytes else f"{'+' if num_bytes > 0 else '-'}{format_bytes(abs(num_bytes))}"


def _parts(predicted: Estimate, is_cuda: bool) -> Mapping[str, int]:
    if is_cuda:
        return predicted.parts
    return {**predicted.parts, "process": predicted.host_bytes - predicted.total_bytes}


def _row(label: str, num_bytes: int, share: float, room: int, change: int) -> list[Part]:
    style = "$accent" if label == TOTAL else "$primary"
    value = f" {format_bytes(num_bytes):>{VALUE_WIDTH}}"
    row: list[Part] = [
        (f"{label:<{LABEL_WIDTH}}", "$foreground-muted"),
        (bar(share, room), style),
        value,
    ]
    if change:
        row.append((f"{format_change(change):>{DELTA_WIDTH}}", "$text-warning" if change > 0 else "$text-success"))
    return row
