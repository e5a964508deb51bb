"""Runs: every run in a table to sort, filter, mark, name, delete and compare."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.events import Resize, ScreenResume, ScreenSuspend
from textual.message import Message
from textual.widgets import DataTable, Footer, Input, Static

from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.state.compare_table import lineage_lines
from gpuworkbench.state.lineage import family_tree
from gpuworkbench.text import safe_text
from gpuworkbench.tui.home_data import INTERVAL_S, RowReader, RunRow
from gpuworkbench.tui.screens.sized import SizedScreen
from gpuworkbench.tui.watch import Watcher
from gpuworkbench.tui.widgets.rows import Part, labelled, lines
from gpuworkbench.tui.widgets.run_browser import RunBrowser, format_moment
from gpuworkbench.tui.widgets.run_table import RunTable, is_live, is_shown

if TYPE_CHECKING:
    from gpuworkbench.tui.app import WorkbenchApp

WIDE = (120, 30)
Rows = tuple[RunRow, ...]


class RunsSource:
    """The source of the list for a `Watcher`: about every two seconds, more seldom where reading takes long."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir
        self._reader = RowReader()

    def __call__(self, stop: threading.Event) -> Iterator[Rows]:
        """The rows until `stop`."""
        while not stop.is_set():
            started_s = time.monotonic()
            yield self._reader.read(self._runs_dir)
            stop.wait(max(INTERVAL_S, 10 * (time.monotonic() - started_s)))


class Runs(SizedScreen[None]):
    """The table, and what is known of the run under the cursor."""

    app: WorkbenchApp
    AUTO_FOCUS = "RunBrowser"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/", id="all_runs.filter", tooltip="What matches your words"),
        Binding("escape", "leave", "Back", id="all_runs.back", tooltip="Take the filter away, then back to Home"),
    ]

    class Ready(Message):
        """Rows are waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: Rows | None = None
        self._watcher: Watcher[Rows] | None = None

    def compose(self) -> ComposeResult:
        """See the class."""
        box = Input(placeholder="words of a name, a preset or a status", id="filter", compact=True)
        box.display = False
        yield box
        with Container(id="browse"):
            yield RunBrowser()
            with VerticalScroll(id="run-detail", classes="panel") as detail:
                detail.border_title = "This run"
                yield Static("", id="run-words", markup=False)
        yield Footer(show_command_palette=False, compact=True)

    def on_resize(self, event: Resize) -> None:
        """The detail beside the table where there is room."""
        self.set_class(event.size.width >= WIDE[0] and event.size.height >= WIDE[1], "wide")
        self.call_after_refresh(self._show)

    def on_unmount(self) -> None:
        """No rows are wanted any more."""
        self._stop_watching()

    @on(ScreenResume)
    def _resumed(self) -> None:
        self._stop_watching()
        source = RunsSource(self.app.services.runs_dir)
        self._watcher = Watcher(source, lambda: self.post_message(self.Ready()), "runs")
        self._watcher.start()

    @on(ScreenSuspend)
    def _suspended(self) -> None:
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None

    @on(Ready)
    def _ready(self) -> None:
        rows = self._watcher.take() if self._watcher is not None else None
        if rows is not None:
            self.rows = rows
            self._show()

    @on(RunTable.Changed)
    def _changed(self, event: RunTable.Changed) -> None:
        if event.is_on_disk:
            self._resumed()
        self._show()

    def _show(self) -> None:
        rows = self.rows
        if rows is None or not self.app.has_screen(self):
            return
        words = self.query_one("#filter", Input).value.lower()
        table = self.query_one(RunBrowser)
        shown = [row for row in rows if is_shown(row, words)]
        with self.app.batch_update():
            table.show(table.ordered(shown))
            live, marked = sum(is_live(row) for row in rows), len(self.app.services.marks.numbers())
            count = f"{len(shown)} of {len(rows)}" if words else str(len(rows))
            table.border_subtitle = f"{count} runs, {live} live, {marked} marked"
            self._show_detail()

    @on(DataTable.RowHighlighted)
    def _show_detail(self) -> None:
        chosen = self.query_one(RunBrowser).chosen
        row = next((row for row in self.rows or () if row.info.path == chosen), None)
        words = self.query_one("#run-words", Static)
        if row is None:
            words.update(Content.styled("no run here yet" if not self.rows else "no run matches", "$foreground-muted"))
        else:
            words.update(self._words(row))

    def _words(self, row: RunRow) -> Content:
        info = row.info
        mark = "CPU twin" if info.is_cpu_twin else info.simulated_card
        parts: list[list[Part]] = [
            [(safe_text(info.name or info.run_id, max_chars=120), "bold")],
            labelled("id", safe_text(info.run_id), "$foreground-muted"),
            labelled("status", f"{info.status.value}{f': {info.reason}' if info.reason else ''}"),
            labelled("preset", info.preset + (f" ({mark})" if mark else "")),
            labelled("created", format_moment(info.created_unix_s)),
            labelled(
                "saved", "no checkpoint" if info.last_checkpoint_step is None else f"step {info.last_checkpoint_step}"
            ),
        ]
        if info.notes:
            parts += [[""], [("Notes", "bold $foreground-muted")]]
            parts += [[line] for line in info.notes.split("\n")]
        tree = family_tree([info.run_id], {other.info.run_id: other.info.forked_from for other in self.rows or ()})
        if len(tree) > 1:
            parts += [[""], [("Forks", "bold $foreground-muted")]]
            parts += [[line] for line in lineage_lines(tree, {info.run_id: "this"})]
        return lines(*parts)

    def action_filter(self) -> None:
        """Type words."""
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    def action_leave(self) -> None:
        """Take the filter away, then leave."""
        box = next(iter(self.query("#filter").results(Input)), None)
        if box is None:  # a key that is quicker than its screen, or slower
            return
        if box.display:
            box.value = ""
            box.display = False
            self.query_one(RunBrowser).focus()
        else:
            self.app.leave(self)

    @on(Input.Changed, "#filter")
    def _filter_changed(self) -> None:
        self._show()

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        self.query_one(RunBrowser).focus()

    @on(DataTable.RowSelected)
    def _run_selected(self, event: DataTable.RowSelected) -> None:
        if event.row_key.value is not None:
            self.app.open_run(RunPaths(Path(event.row_key.value)))
