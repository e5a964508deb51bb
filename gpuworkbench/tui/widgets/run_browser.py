"""The table of all runs: more columns than Home's, sorted by any of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from gpuworkbench.state.lines import format_loss
from gpuworkbench.text import safe_text
from gpuworkbench.tui.home_data import RunRow
from gpuworkbench.tui.widgets.run_table import (
    LOSS_WIDTH,
    NAME_WIDTH,
    PADDING,
    STATUS_WIDTH,
    STEP_WIDTH,
    RunTable,
    column_widths,
)
from gpuworkbench.units import NOT_AVAILABLE, format_count, format_duration

# column -> what it is sorted by; None comes last either way
_KEYS: Mapping[str, Callable[[RunRow], object]] = {
    "created": lambda row: row.info.created_unix_s,
    "run": lambda row: (row.info.name or row.info.run_id).lower(),
    "status": lambda row: row.info.status.value,
    "progress": lambda row: (row.info.step or 0) / row.info.max_steps if row.info.max_steps else None,
    "step": lambda row: row.info.step,
    "loss": lambda row: row.info.last_loss,
    "best val": lambda row: row.best_val_loss,
    "time": lambda row: row.elapsed_s,
    "tokens": lambda row: row.tokens,
    "preset": lambda row: row.info.preset,
}
# Columns that come in where there is room, in this order.
_FURTHER = {"best val": 10, "time": 12, "tokens": 8, "created": 16, "preset": 22}
NARROWEST = NAME_WIDTH + STATUS_WIDTH + STEP_WIDTH + LOSS_WIDTH + 4 * PADDING + 4  # Home's columns and the border
FALLING, RISING = "▼", "▲"


class RunBrowser(RunTable):
    """Newest first, until another order is asked for."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort", "Sort", id="browser.sort", tooltip="By the next column; a click on its head does it too"),
        Binding("S", "reverse", "Reverse", id="browser.reverse", tooltip="The other way round", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._order = ("created", True)

    @property
    def sorting(self) -> object:
        """See RunTable."""
        return self._order

    def widths(self, width: int) -> dict[str, int]:
        """As on Home, and as many further columns as fit."""
        further: dict[str, int] = {}
        spare = width - NARROWEST
        for label, cells in _FURTHER.items():
            if spare >= cells + PADDING:
                further[label] = cells
                spare -= cells + PADDING
        basic = column_widths(width - sum(cells + PADDING for cells in further.values()))
        course = {"course": basic.pop("course")} if "course" in basic else {}
        return {**basic, **further, **course}

    def heading(self, label: str) -> str:
        """The column that sorts says so."""
        column, is_reversed = self._order
        return f"{label} {FALLING if is_reversed else RISING}" if label == column else label

    def ordered(self, rows: Sequence[RunRow]) -> list[RunRow]:
        """The rows in the order asked for; what has no value comes last."""
        column, is_reversed = self._order
        key = _KEYS[column]
        known = [row for row in rows if key(row) is not None]
        unknown = [row for row in rows if key(row) is None]
        return sorted(known, key=key, reverse=is_reversed) + unknown  # type: ignore[arg-type]

    def further_cell(self, label: str, row: RunRow) -> Text:
        """See RunTable."""
        texts = {
            "best val": format_loss(row.best_val_loss),
            "time": format_duration(row.elapsed_s),
            "tokens": format_count(row.tokens),
            "preset": safe_text(row.info.preset, max_chars=_FURTHER["preset"]),
            "created": format_moment(row.info.created_unix_s),
        }
        return Text(texts[label], justify="left" if label in ("preset", "created") else "right", no_wrap=True)

    def action_sort(self) -> None:
        """By the next column."""
        columns = [label for label in self.widths(self.size.width) if label in _KEYS]
        at = columns.index(self._order[0]) + 1 if self._order[0] in columns else 0
        self._sort_by(columns[at % len(columns)])

    def action_reverse(self) -> None:
        """The other way round."""
        self._order = (self._order[0], not self._order[1])
        self.post_message(self.Changed())

    @on(DataTable.HeaderSelected)
    def _header_selected(self, event: DataTable.HeaderSelected) -> None:
        event.stop()
        label = event.column_key.value or ""
        if label == self._order[0]:
            self.action_reverse()
        elif label in _KEYS:
            self._sort_by(label)

    def _sort_by(self, label: str) -> None:
        self._order = (label, label in ("created", "progress", "step", "tokens", "time"))
        self.post_message(self.Changed())


def format_moment(unix_s: float | None) -> str:
    """A time as this machine's clock shows it, to the minute."""
    if unix_s is None:
        return NOT_AVAILABLE
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s))
    except (OverflowError, ValueError, OSError):
        return NOT_AVAILABLE
