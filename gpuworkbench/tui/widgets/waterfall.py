"""The predicted bytes of a run by part, each as a bar; and what changed since the preset, where something did."""

from __future__ import annotations

from gpuworkbench.plan.analytic import Estimate
from gpuworkbench.plan.waterfall import TOTAL, Row, bar, rows
from gpuworkbench.tui.widgets.rows import Part
from gpuworkbench.units import format_bytes

LABEL_WIDTH = 17
VALUE_WIDTH = 11
DELTA_WIDTH = 12


def waterfall(
    predicted: Estimate, *, is_cuda: bool, limit_bytes: int | None, width: int, before: Estimate | None = None
) -> list[list[Part]]:
    """A row a part, the total against the limit, and what host and disk take. `before` adds a column of changes."""
    found = rows(predicted, is_cuda=is_cuda, limit_bytes=limit_bytes, before=before)
    has_changes = any(row.change for row in found)
    room = max(width - LABEL_WIDTH - VALUE_WIDTH - 1 - (DELTA_WIDTH if has_changes else 0), 4)
    where = "card" if is_cuda else "host"
    beside = [f"{where} has {format_bytes(limit_bytes)}", f"disk {format_bytes(predicted.disk_bytes)}"]
    if is_cuda:
        beside.insert(1, f"host {format_bytes(predicted.host_bytes)}")
    peak = f"at its highest in: {predicted.moment}"
    return [
        *(_row(row, room) for row in found),
        [(", ".join(beside), "$foreground-muted")],
        [(peak, "$foreground-muted")],
    ]


def format_change(num_bytes: int) -> str:
    """`+1.20 GiB`, `-80.0 MiB`; empty for none."""
    return "" if not num_bytes else f"{'+' if num_bytes > 0 else '-'}{format_bytes(abs(num_bytes))}"


def _row(row: Row, room: int) -> list[Part]:
    style = "$accent" if row.label == TOTAL else "$primary"
    parts: list[Part] = [
        (f"{row.label:<{LABEL_WIDTH}}", "$foreground-muted"),
        (bar(row.share, room), style),
        f" {format_bytes(row.num_bytes):>{VALUE_WIDTH}}",
    ]
    if row.change:
        parts.append(
            (f"{format_change(row.change):>{DELTA_WIDTH}}", "$text-warning" if row.change > 0 else "$text-success")
        )
    return parts
