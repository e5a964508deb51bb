"""Compare: the marked runs' losses in one plot, and the tables of `gpuworkbench compare` beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, ScrollableContainer
from textual.content import Content
from textual.events import Resize
from textual.message import Message
from textual.widgets import Footer, Static

from gpuworkbench.errors import WorkbenchError
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.state.compare import Compared, Comparison, compare
from gpuworkbench.state.compare_table import (
    Table,
    aligned,
    best_columns,
    difference_table,
    lineage_lines,
    loss_table,
    run_letters,
    summary_table,
)
from gpuworkbench.state.curves import By, curve
from gpuworkbench.state.export_plots import export_lines, written_words
from gpuworkbench.state.lines import format_loss
from gpuworkbench.state.svg_plot import Line
from gpuworkbench.text import safe_text
from gpuworkbench.tui.background import in_background
from gpuworkbench.tui.compare_data import CompareSource, CompareView
from gpuworkbench.tui.plot_axis import Range
from gpuworkbench.tui.screens.ask_loss import AskLoss
from gpuworkbench.tui.screens.plot_actions import PlotActions, plot_bindings
from gpuworkbench.tui.screens.sized import SizedScreen
from gpuworkbench.tui.watch import Watcher
from gpuworkbench.tui.widgets.compare_plot import WHICH, WHICH_WORDS, ComparePlot, Which, range_of, value_at_cursor
from gpuworkbench.tui.widgets.rows import Part, lines
from gpuworkbench.tui.widgets.run_looks import STATUS_LOOKS, looks

if TYPE_CHECKING:
    from gpuworkbench.tui.app import WorkbenchApp

WIDE = (110, 32)
NAME_CHARS = 28
TABLES = (
    ("summary", "2 Runs"),
    ("losses", "3 Loss at the same place"),
    ("keys", "4 Configuration"),
    ("forks", "5 Forks"),
)


class TablePanel(ScrollableContainer):
    """A table that scrolls both ways."""

    def __init__(self, name: str, title: str) -> None:
        super().__init__(Static("", markup=False), id=name, classes="panel")
        self.border_title = title

    def show(self, content: Content) -> None:
        """Replace the text."""
        self.query_one(Static).update(content)


class CompareScreen(PlotActions, SizedScreen[None]):
    """Plot and tables; a digit shows one alone."""

    app: WorkbenchApp
    AUTO_FOCUS = "ComparePlot"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "next_loss", "Which loss", id="compare.which", tooltip="Training, validation, or both"),
        Binding("x", "next_axis", "Axis", id="compare.axis", tooltip="Over steps, tokens or time"),
        Binding("t", "target", "Target", id="compare.target", tooltip="The loss that the time to a loss asks for"),
        Binding("w", "export", "Export", id="compare.export", tooltip="The plot as SVG and CSV"),
        Binding("escape", "leave", "Back", id="compare.back", tooltip="Back to the runs; the marks stay"),
        *(Binding(str(index), f"solo({index})", f"Part {index} alone", show=False) for index in range(1, 6)),
        *plot_bindings("compare")[1:],
    ]

    class Ready(Message):
        """A view is waiting."""

    def __init__(self, runs: Sequence[RunPaths]) -> None:
        super().__init__()
        self.runs = list(runs)
        self.view: CompareView | None = None
        self.comparison: Comparison | None = None
        self.which: Which = "both"
        self.target_loss: float | None = None
        self._watcher = Watcher(CompareSource(runs), lambda: self.post_message(self.Ready()), "compare")

    def compose(self) -> ComposeResult:
        """See the class."""
        yield Static("", id="legend", markup=False)
        with Container(id="compare"):
            yield ComparePlot()
            for name, title in TABLES:
                yield TablePanel(name, title)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """Follow from now on."""
        self._watcher.start()

    def on_unmount(self) -> None:
        """Stop following; the runs are not touched."""
        self._watcher.stop()

    def on_resize(self, event: Resize) -> None:
        """Tables beside the plot where there is room."""
        self.set_class(event.size.width >= WIDE[0] and event.size.height >= WIDE[1], "wide")
        self.call_after_refresh(self._show_legend)

    @on(Ready)
    def _ready(self) -> None:
        view = self._watcher.take()
        if view is not None:
            self.view = view
            self._show()

    def _show(self) -> None:
        """Tables anew, then the plot."""
        view = self.view
        if view is None or not self.app.has_screen(self):
            return
        self.comparison = comparison = compare(view.runs, self.axis.by, self.target_loss, view.branches)
        with self.app.batch_update():
            self._table("summary", _transposed(comparison))
            self._table("losses", _plain(loss_table(comparison)))
            self._table("keys", _plain(difference_table(comparison)))
            forks = lineage_lines(comparison.lineage, run_letters(comparison))
            none = [("none of these runs is a fork", "$foreground-muted")]
            self._table("forks", lines(*forks) if forks else lines(*none))
            self._show_plot()

    def _table(self, name: str, content: Content) -> None:
        self.query_one(f"#{name}", TablePanel).show(content)

    def _show_plot(self) -> None:
        if self.view is not None:
            self.query_one(ComparePlot).show(self.view, self.axis, self.which)
            self._show_legend()

    def _show_legend(self) -> None:
        view = self.view
        if view is None or not self.app.has_screen(self):
            return
        legend = self.query_one("#legend", Static)
        width = legend.content_size.width
        if not width:
            return
        styles = looks(is_dark=self.app.current_theme.dark)
        rows: list[list[Part]] = [[]]
        used = 0
        for run, look in zip(view.runs, styles, strict=False):
            glyph, style = STATUS_LOOKS[run.status]
            words = f"{look.letter} {safe_text(run.title, max_chars=NAME_CHARS)}"
            value = f" {self._at_cursor(run)}" if self.axis.cursor is not None else ""
            problem = f" ({run.problem})" if run.problem else ""
            size = len(words) + len(value) + len(problem) + 7
            if used and used + size > width:
                rows.append([])
                used = 0
            rows[-1] += [(f"{look.marker} ", look.color), f"{words} ", (glyph, style), (value, "bold"), f"{problem}   "]
            used += size
        if view.is_reading:
            rows[-1].append(("reading ...", "$foreground-muted"))
        legend.update(lines(*rows))

    def _at_cursor(self, run: Compared) -> str:
        name = "val_loss" if self.which == "val" else "loss"
        return format_loss(value_at_cursor(run, self.axis, name))

    # Plot

    def plot_range(self) -> Range:
        """Of all runs."""
        return range_of(self.view.runs if self.view is not None else (), self.axis)

    def convert_x(self, x: float, old: By, new: By) -> float:
        """A place of one run is another of the next: window and cursor begin anew."""
        return float("nan")

    def axis_changed(self) -> None:
        """The tables too go by the axis."""
        if self.comparison is not None and self.comparison.by != self.axis.by:
            self._show()
        else:
            self._show_plot()

    # Keys

    def action_next_loss(self) -> None:
        """Training and validation, validation, training."""
        self.which = WHICH[(WHICH.index(self.which) + 1) % len(WHICH)]
        self._show_plot()

    def action_target(self) -> None:
        """Ask for the loss of "time to a loss"."""

        def answered(answer: tuple[float | None] | None) -> None:
            if answer is not None:
                self.target_loss = answer[0]
                self._show()

        self.app.push_screen(AskLoss(self.target_loss), answered)

    def action_export(self) -> None:
        """Write the plot into the first run's exports/."""
        view, axis, which = self.view, self.axis, self.which
        if view is None:
            return
        chosen: list[Line] = []
        for run in view.runs:
            for name, words in (("loss", "training"), ("val_loss", "validation")):
                points = curve(run.state.series, name, axis.by, axis.smoothing if name == "loss" else 0.0)
                if len(points) and which in ("both", {"loss": "train", "val_loss": "val"}[name]):
                    chosen.append(Line(f"{run.title}, {words}", points.x, points.y, name == "val_loss"))
        directory, stem = view.runs[0].paths.exports, f"compare-{len(view.runs)}-runs-by-{axis.by}"

        def work() -> str:
            written = export_lines(directory, stem, WHICH_WORDS[which], chosen, axis.by, is_log=axis.is_log)
            return written_words(written)

        def failed(error: WorkbenchError) -> None:
            self.app.notify(error.line(), title="not exported", severity="error", markup=False)

        def done(line: str) -> None:
            self.app.notify(safe_text(line), title="exported", timeout=10, markup=False)

        in_background(self.app, work, done, failed, "export")

    def action_leave(self) -> None:
        """From one part to all, then back."""
        if self.has_class("solo"):
            self._solo(None)
        else:
            self.app.leave(self)

    def action_solo(self, index: int) -> None:
        """One part alone, or all again."""
        for part in list(self.query("#compare > .panel"))[index - 1 : index]:  # none before the screen is made
            self._solo(None if part.has_class("alone") else index - 1)

    def _solo(self, index: int | None) -> None:
        self.set_class(index is not None, "solo")
        for number, part in enumerate(self.query("#compare > .panel")):
            part.set_class(number == index, "alone")
            if number == index:
                part.focus()


def _plain(table: Table) -> Content:
    """A muted title, the header, the rows."""
    if not table.rows:
        return Content.styled(table.title, "$foreground-muted")
    head, *rest = aligned(table.header, table.rows, table.right)
    return lines((table.title, "$foreground-muted"), (head, "bold"), *rest)


def _transposed(comparison: Comparison) -> Content:
    """The runs as columns: a column a run fits where a line a run does not. The best of a line is marked."""
    table, best = summary_table(comparison), best_columns(comparison)
    columns = [i for i, label in enumerate(table.header) if label not in ("", "RUN")]
    header = ["", *(row[0] for row in table.rows)]
    rows = []
    for column in columns:
        label = table.header[column]
        cells = [row[column] + ("*" if best.get(label) == index else " ") for index, row in enumerate(table.rows)]
        rows.append([label.lower(), *cells])
    head, *rest = aligned(header, rows, right=range(1, len(header)))
    words = f"* best; {table.title}" if best else table.title
    return lines((head, "bold"), *rest, (words, "$foreground-muted"))
