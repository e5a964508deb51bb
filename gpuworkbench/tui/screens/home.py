"""Home: pick a preset and start it, or open a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Resize, ScreenResume, ScreenSuspend
from textual.message import Message
from textual.widgets import DataTable, Footer, Input, OptionList, Static

from gpuworkbench.plan.analytic import Verdict
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.state.lines import one_line
from gpuworkbench.tui import later
from gpuworkbench.tui.form.outlook import Machine
from gpuworkbench.tui.home_data import HomeSource, HomeView, PresetRow
from gpuworkbench.tui.screens.dialogs import Confirm
from gpuworkbench.tui.screens.sized import SizedScreen
from gpuworkbench.tui.watch import Watcher
from gpuworkbench.tui.widgets.job_bar import JobBar
from gpuworkbench.tui.widgets.machine import MachineStrip
from gpuworkbench.tui.widgets.preset_detail import PresetDetail
from gpuworkbench.tui.widgets.preset_list import PresetList
from gpuworkbench.tui.widgets.run_table import RunTable, is_live, is_shown
from gpuworkbench.units import format_bytes

if TYPE_CHECKING:
    from gpuworkbench.tui.app import WorkbenchApp

WIDE = (110, 30)
WARM_UP_AFTER_S = 0.5  # the first frame has been drawn by then


class Home(SizedScreen[None]):
    """Presets on the left, runs on the right; above one another where the terminal is narrow."""

    app: WorkbenchApp

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/", id="home.filter", tooltip="Show what matches your words"),
        Binding("r", "runs", "Runs", id="home.runs", tooltip="All runs: sort, filter, mark, compare, delete"),
        Binding("tab", "app.focus_next", "Other list", id="home.next", tooltip="Between presets and runs"),
        Binding("escape", "clear_filter", "All", id="home.all", tooltip="Take the filter away", show=False),
    ]

    class Ready(Message):
        """A view is waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.view: HomeView | None = None
        self._watcher: Watcher[HomeView] | None = None

    def compose(self) -> ComposeResult:
        """See the class."""
        yield MachineStrip()
        yield Input(placeholder="words of a name, a card or a status", id="filter", compact=True)
        with Horizontal(id="lists"):
            with Vertical(id="left"):
                yield PresetList()
                yield PresetDetail()
            with Vertical(id="right"):
                yield RunTable()
                empty = Static("", id="no-runs", markup=False)
                empty.border_title = "Runs"
                yield empty
        yield JobBar()
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """The presets come first."""
        self.query_one("#filter", Input).display = False
        self.query_one(PresetList).focus()

    def on_resize(self, event: Resize) -> None:
        """Lists side by side where there is room."""
        self.set_class(event.size.width >= WIDE[0] and event.size.height >= WIDE[1], "wide")
        self.call_after_refresh(self._show)

    def on_unmount(self) -> None:
        """No view is wanted any more."""
        self._stop_watching()

    @on(ScreenResume)
    def _resumed(self) -> None:
        self._stop_watching()
        self._watcher = Watcher(HomeSource(self.app.services), lambda: self.post_message(self.Ready()), "home")
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
        view = self._watcher.take() if self._watcher is not None else None
        if view is not None:
            if self.view is None:
                self.set_timer(WARM_UP_AFTER_S, later.warm_up)
            self.view = view
            self._show()

    def _show(self) -> None:
        """Give every widget its part of the view, through the filter."""
        view = self.view
        if view is None or not self.app.has_screen(self):
            return
        words = self.query_one("#filter", Input).value.lower()
        presets = [row for row in view.presets if _preset_matches(row, words)]
        runs = [row for row in view.runs if is_shown(row, words)]
        with self.app.batch_update():
            self.query_one(MachineStrip).show(view)
            self.query_one(PresetList).show(presets)
            table = self.query_one(RunTable)
            table.show(runs)
            live = sum(is_live(row) for row in view.runs)
            table.border_subtitle = f"{len(view.runs)}, {live} live" if view.runs else ""
            hint = "no run matches the filter" if view.runs else "no run yet: enter on a preset opens it, s starts it"
            self.query_one("#no-runs", Static).update(Content.styled("" if runs else hint, "$foreground-muted"))
            self.query_one("#no-runs", Static).display = not runs
            table.display = bool(runs)
            self.query_one(PresetDetail).show(self.query_one(PresetList).chosen)

    @on(OptionList.OptionHighlighted)
    def _highlighted(self) -> None:
        self.query_one(PresetDetail).show(self.query_one(PresetList).chosen)

    @on(OptionList.OptionSelected)
    def _preset_selected(self, event: OptionList.OptionSelected) -> None:
        row = self.query_one(PresetList).rows.get(event.option.id or "")
        if row is None:
            return
        if row.config is None:
            self.app.notify(one_line(row.problem), title=row.name, severity="error", markup=False)
            return
        machine = machine_of(self.view) if self.view is not None else None
        self.app.open_preset(row.path or row.name, machine, cpu_twin=row.runs_as == "twin")

    @on(PresetList.StartNow)
    def _start_now(self) -> None:
        row = self.query_one(PresetList).chosen
        if row is not None:
            self._start(row)

    @on(RunTable.Changed)
    def _runs_changed(self, event: RunTable.Changed) -> None:
        """Marks are shown at once; what changed on the disk is read again."""
        if event.is_on_disk:
            self._resumed()
        self._show()

    def action_runs(self) -> None:
        """All runs, with more columns."""
        self.app.show_runs()

    @on(DataTable.RowSelected)
    def _run_selected(self, event: DataTable.RowSelected) -> None:
        if event.row_key.value is not None:
            self.app.open_run(RunPaths(Path(event.row_key.value)))

    def action_filter(self) -> None:
        """Show the filter and type into it."""
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    def action_clear_filter(self) -> None:
        """Show everything again."""
        box = self.query_one("#filter", Input)
        box.value = ""
        box.display = False
        self.query_one(PresetList).focus()

    @on(Input.Changed, "#filter")
    def _filter_changed(self) -> None:
        self._show()

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        """To the list that has something."""
        presets = self.query_one(PresetList)
        (presets if presets.chosen is not None else self.query_one(RunTable)).focus()

    def _start(self, row: PresetRow) -> None:
        """Start a preset; ask first where it is not expected to fit."""
        if row.config is None or row.runs_as == "none":
            self.app.notify(one_line(row.problem), title=row.name, severity="error", markup=False)
            return
        if row.verdict is not Verdict.DOES_NOT_FIT or row.predicted is None:
            self.app.start_preset(row.name, cpu_twin=row.runs_as == "twin")
            return
        needed = row.predicted.total_bytes if row.runs_as == "cuda" else row.predicted.host_bytes
        question = (
            f"{row.name} is predicted to need {format_bytes(needed)}; {format_bytes(row.limit_bytes)} are here.\n"
            "Start it all the same?"
        )

        def answered(yes: bool | None) -> None:
            if yes:
                self.app.start_preset(row.name, cpu_twin=row.runs_as == "twin")

        self.app.push_screen(Confirm(question, "Start", "Cancel"), answered)


def machine_of(view: HomeView) -> Machine:
    """The machine as Home read it last; who uses which card is not known to it."""
    return Machine(view.cards, view.host, {})


def _preset_matches(row: PresetRow, words: str) -> bool:
    text = f"{row.name} {row.group} {row.description}".lower()
    return all(word in text for word in words.split())
