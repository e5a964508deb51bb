"""The runs, newest first: status by evidence, how far, the last loss and its course."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from gpuworkbench.runs.status import RunStatus
from gpuworkbench.state.lines import format_loss
from gpuworkbench.text import safe_text
from gpuworkbench.tui.home_data import RunRow
from gpuworkbench.tui.panels.header import STATUS_LOOKS
from gpuworkbench.tui.widgets.glyphs import bar, sparkline
from gpuworkbench.units import NOT_AVAILABLE

BAR_WIDTH = 8
# Cells of the columns without their padding: a run id, the longest status, "1000/1000", a loss.
NAME_WIDTH, STATUS_WIDTH, STEP_WIDTH, LOSS_WIDTH, PADDING = 31, 11, 9, 8, 2
MAX_SPARK_WIDTH, MIN_SPARK_WIDTH = 32, 8


class RunTable(DataTable[Text]):
    """Row keys are the paths of the runs."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Open", id="runs.open", tooltip="Watch the run, live or finished"),
    ]

    def __init__(self) -> None:
        super().__init__(id="runs", cursor_type="row", zebra_stripes=False)
        self.border_title = "Runs"
        self._shown: tuple[tuple[RunRow, ...], int, str] | None = None

    def show(self, rows: Sequence[RunRow]) -> None:
        """Replace the rows where something changed; the cursor stays on its run."""
        width = self.size.width
        if not width or self._shown == (tuple(rows), width, self.app.theme):
            return
        self._shown = (tuple(rows), width, self.app.theme)
        chosen = self.chosen
        top = self.scroll_offset
        self.clear(columns=True)
        widths = column_widths(width)
        for label, cells in widths.items():
            self.add_column(label, key=label, width=cells)
        for row in rows:
            self.add_row(*self._cells(row, widths), key=row.info.path)
        paths = [row.info.path for row in rows]
        if chosen in paths:
            self.move_cursor(row=paths.index(chosen), animate=False, scroll=False)
        self.scroll_to(top.x, top.y, animate=False)

    @property
    def chosen(self) -> str | None:
        """The path of the run under the cursor."""
        if not self.row_count or not self.is_valid_coordinate(self.cursor_coordinate):
            return None
        return self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value

    def _cells(self, row: RunRow, widths: dict[str, int]) -> list[Text]:
        info = row.info
        glyph, style = STATUS_LOOKS[info.status]
        share = info.step / info.max_steps if info.step is not None and info.max_steps else None
        step = NOT_AVAILABLE if info.step is None else str(info.step)
        end = f"/{info.max_steps}" if info.max_steps is not None else ""
        twin = " twin" if info.is_cpu_twin else ""
        name = safe_text(info.name or info.run_id, max_chars=widths["run"] - len(twin))
        cells = [
            Text.assemble(name, (twin, self._color("$accent")), no_wrap=True),
            Text(f"{glyph} {info.status.value}", style=self._color(style)),
            Text(f"{step}{end}", justify="right"),
            Text(format_loss(info.last_loss), justify="right"),
        ]
        if "progress" in widths:
            cells.insert(2, Text(bar(share, BAR_WIDTH), style=self._color("$primary")))
        if "course" in widths:
            cells.append(Text(sparkline(row.losses, widths["course"]), style=self._color("$primary")))
        return cells

    def _color(self, style: str) -> str:
        """A theme variable as the colour it stands for."""
        name = style.removeprefix("$").removeprefix("text-")
        return self.app.theme_variables.get("foreground-darken-3" if name == "foreground-muted" else name, "")


def column_widths(width: int) -> dict[str, int]:
    """Columns and their cells in a table of `width`: the loss's course and then the bar where there is room."""
    room = width - 2 - PADDING
    columns = {"run": NAME_WIDTH, "status": STATUS_WIDTH, "step": STEP_WIDTH, "loss": LOSS_WIDTH}
    spare = room - sum(columns.values()) - PADDING * len(columns)
    if spare >= BAR_WIDTH + MIN_SPARK_WIDTH + 3 * PADDING:
        columns = {"run": NAME_WIDTH, "status": STATUS_WIDTH, "progress": BAR_WIDTH, **columns}
        spare -= BAR_WIDTH + PADDING
    if spare >= MIN_SPARK_WIDTH + PADDING:
        columns["course"] = min(spare - PADDING, MAX_SPARK_WIDTH)
        spare -= columns["course"] + PADDING
    columns["run"] = max(columns["run"] + spare, 12) if spare < 0 else columns["run"] + min(spare, 40)
    return columns


def is_shown(row: RunRow, text: str) -> bool:
    """Whether a run matches what was typed into the filter."""
    info = row.info
    return all(word in f"{info.run_id} {info.name} {info.preset} {info.status.value}".lower() for word in text.split())


def is_live(row: RunRow) -> bool:
    """Whether a trainer is at it."""
    return RunStatus(row.info.status).is_live
