"""The runs, newest first: status by evidence, how far, the last loss and its course."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import DataTable

from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.status import RunStatus
from gpuworkbench.state.compare import MAX_RUNS
from gpuworkbench.state.lines import format_loss
from gpuworkbench.text import safe_text
from gpuworkbench.tui.home_data import RunRow
from gpuworkbench.tui.run_actions import ask_delete, edit_label
from gpuworkbench.tui.widgets.glyphs import bar, sparkline
from gpuworkbench.tui.widgets.run_looks import STATUS_LOOKS, looks
from gpuworkbench.units import NOT_AVAILABLE

if TYPE_CHECKING:
    from gpuworkbench.tui.app import WorkbenchApp

BAR_WIDTH = 8
# Cells of the columns without their padding: a run id, the longest status, "1000/1000", a loss.
NAME_WIDTH, STATUS_WIDTH, STEP_WIDTH, LOSS_WIDTH, PADDING = 31, 11, 9, 8, 2
MAX_SPARK_WIDTH, MIN_SPARK_WIDTH = 32, 8


class RunTable(DataTable[Text]):
    """Row keys are the paths of the runs."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Open", id="runs.open", tooltip="Watch the run, live or finished"),
        Binding("space", "mark", "Mark", id="runs.mark", tooltip="Mark the run for comparison, or take the mark away"),
        Binding("c", "compare", "Compare", id="runs.compare", tooltip="The marked runs side by side"),
        Binding("e", "label", "Name", id="runs.label", tooltip="Give the run a name and notes"),
        Binding("home", "scroll_top", "First", id="runs.first", tooltip="The first run", show=False),
        Binding("end", "scroll_bottom", "Last", id="runs.last", tooltip="The last run", show=False),
        Binding("d,delete", "delete", "Del", id="runs.delete", tooltip="Delete the run and all it holds (asks)"),
    ]

    app: WorkbenchApp

    def __init__(self) -> None:
        super().__init__(id="runs", cursor_type="row", zebra_stripes=False)
        self.border_title = "Runs"
        self._shown: tuple[object, ...] | None = None

    def show(self, rows: Sequence[RunRow]) -> None:
        """Replace the rows where something changed; the cursor stays on its run."""
        width = self.size.width
        marks = self.app.services.marks.numbers()
        now = (tuple(rows), width, self.app.theme, tuple(marks), self.sorting)
        if not width or self._shown == now:
            return
        self._shown = now
        chosen = self.chosen
        top = self.scroll_offset
        self.clear(columns=True)
        widths = self.widths(width)
        for label, cells in widths.items():
            self.add_column(self.heading(label), key=label, width=cells)
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

    # What another list of runs does differently

    @property
    def sorting(self) -> object:
        """How the rows are ordered, where that can change."""
        return None

    def widths(self, width: int) -> dict[str, int]:
        """The columns of a table that wide."""
        return column_widths(width)

    def heading(self, label: str) -> str:
        """The words above a column."""
        return label

    # Keys

    def _chosen_run(self) -> RunPaths | None:
        return RunPaths(Path(self.chosen)) if self.chosen is not None else None

    def action_mark(self) -> None:
        """Mark the run, and go on to the next."""
        run = self._chosen_run()
        if run is None:
            return
        if not self.app.services.marks.toggle(run.root):
            self.app.notify(f"{MAX_RUNS} runs are marked already", severity="warning", markup=False)
        self.action_cursor_down()
        self.post_message(self.Changed())

    def action_compare(self) -> None:
        """Open the marked runs side by side."""
        self.app.compare_marked(self._chosen_run())

    def action_label(self) -> None:
        """Ask for a name and notes."""
        if (run := self._chosen_run()) is not None:
            edit_label(self.app, run, self._changed)

    def action_delete(self) -> None:
        """Ask, then delete."""
        if (run := self._chosen_run()) is not None:
            ask_delete(self.app, run, self._changed)

    def _changed(self) -> None:
        if self.is_attached:
            self.post_message(self.Changed(is_on_disk=True))

    class Changed(Message):
        """A mark, or (`is_on_disk`) a run was changed here: the list shows it at once."""

        def __init__(self, *, is_on_disk: bool = False) -> None:
            super().__init__()
            self.is_on_disk = is_on_disk

    def _mark(self, path: str) -> Text:
        """The marker of a marked run, in its colour."""
        number = self.app.services.marks.numbers().get(path)
        if number is None:
            return Text()
        look = looks(is_dark=self.app.current_theme.dark)[number]
        return Text(f"{look.marker} ", style=look.color)

    def _cells(self, row: RunRow, widths: dict[str, int]) -> list[Text]:
        info = row.info
        glyph, style = STATUS_LOOKS[info.status]
        share = info.step / info.max_steps if info.step is not None and info.max_steps else None
        step = NOT_AVAILABLE if info.step is None else str(info.step)
        end = f"/{info.max_steps}" if info.max_steps is not None else ""
        twin = " twin" if info.is_cpu_twin else " simulated" if info.simulated_card else ""
        mark = self._mark(info.path)
        name = safe_text(info.name or info.run_id, max_chars=widths["run"] - len(twin) - len(mark))
        cells = {
            "run": Text.assemble(mark, name, (twin, self._color("$accent")), no_wrap=True),
            "status": Text(f"{glyph} {info.status.value}", style=self._color(style)),
            "progress": Text(bar(share, BAR_WIDTH), style=self._color("$primary")),
            "step": Text(f"{step}{end}", justify="right"),
            "loss": Text(format_loss(info.last_loss), justify="right"),
            "course": Text(sparkline(row.losses, widths.get("course", 0)), style=self._color("$primary")),
        }
        return [cells[label] if label in cells else self.further_cell(label, row) for label in widths]

    def further_cell(self, label: str, row: RunRow) -> Text:
        """The cell of a column that only another list has."""
        raise NotImplementedError(label)

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
