"""Exporting a panel's plot off the app's loop: a long log takes seconds to read."""

from __future__ import annotations

from textual.app import App

from gpuworkbench.errors import WorkbenchError
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.state.export_plots import export_plot, written_words
from gpuworkbench.state.run_state import RunState
from gpuworkbench.text import safe_text
from gpuworkbench.tui.background import in_background
from gpuworkbench.tui.plot_axis import PlotAxis
from gpuworkbench.tui.widgets.plot_panel import PlotPanel


def export_in_background(app: App[int], paths: RunPaths, state: RunState, panel: PlotPanel, axis: PlotAxis) -> None:
    """Write the panel's series as they are looked at; says where, or why not."""

    def work() -> str:
        written = export_plot(
            paths, state, panel.NAME, panel.SERIES, by=axis.by, smoothing=axis.smoothing, is_log=axis.is_log
        )
        return written_words(written)

    def done(line: str) -> None:
        app.notify(safe_text(line), title="exported", timeout=10, markup=False)

    def failed(error: WorkbenchError) -> None:
        app.notify(error.line(), title="not exported", severity="error", markup=False)

    in_background(app, work, done, failed, "export")
