"""Live run: one run as its directory tells it, training or not, with the keys that act on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.events import Click, Resize
from textual.message import Message
from textual.widgets import Footer

from gpuworkbench import registry
from gpuworkbench.config.live_keys import configured_values
from gpuworkbench.errors import WorkbenchError
from gpuworkbench.runs.control import send_command
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.status import RunStatus
from gpuworkbench.state.compare import live_value
from gpuworkbench.state.curves import By, on_axis, step_at
from gpuworkbench.state.lines import one_line
from gpuworkbench.tui.follower import RunSource, RunView
from gpuworkbench.tui.panels import LIVE_PANELS
from gpuworkbench.tui.panels.header import HeaderPanel
from gpuworkbench.tui.panels.loss import LossPanel
from gpuworkbench.tui.panels.messages import MessagesPanel
from gpuworkbench.tui.panels.timeline import TimelinePanel
from gpuworkbench.tui.plot_axis import Range
from gpuworkbench.tui.plot_export import export_in_background
from gpuworkbench.tui.screens.ask_steps import AskSteps
from gpuworkbench.tui.screens.dialogs import Confirm
from gpuworkbench.tui.screens.live_edit import LiveEdit
from gpuworkbench.tui.screens.plot_actions import PlotActions, plot_bindings
from gpuworkbench.tui.screens.sized import SizedScreen
from gpuworkbench.tui.watch import Watcher
from gpuworkbench.tui.widgets.panel import Panel
from gpuworkbench.tui.widgets.plot_panel import PlotPanel, full_range

if TYPE_CHECKING:
    from gpuworkbench.tui.app import WorkbenchApp

PANELS: list[type[Panel | MessagesPanel]] = [registry.load(target) for target in LIVE_PANELS]
WIDE = (110, 32)
PLOT_INTERVAL_S = 0.4

RESUMABLE = (RunStatus.STOPPED, RunStatus.FAILED, RunStatus.CRASHED, RunStatus.COMPLETED)
# action -> the statuses it makes sense in
ALLOWED: dict[str, tuple[RunStatus, ...]] = {
    "toggle_pause": (RunStatus.RUNNING, RunStatus.PAUSED),
    "checkpoint": (RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.STALLED),
    "stop": (RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.STALLED, RunStatus.QUEUED),
    "resume": RESUMABLE,
    "edit": (RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.STALLED),
}


class Live(PlotActions, SizedScreen[None]):
    """Head and timeline above, panels below; a digit shows one panel alone."""

    app: WorkbenchApp

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "toggle_pause", "Pause", id="live.pause", tooltip="Pause after this step, or go on"),
        Binding("c", "checkpoint", "Save", id="live.checkpoint", tooltip="Write a checkpoint after this step"),
        Binding("s", "stop", "Stop", id="live.stop", tooltip="Write a checkpoint and end the trainer (asks)"),
        Binding(
            "r",
            "resume",
            "Resume",
            id="live.resume",
            tooltip="Go on from the last checkpoint, or past its end",
        ),
        Binding("e", "edit", "Edit", id="live.edit", tooltip="Learning rate and intervals, while it trains"),
        Binding("w", "export", "Export", id="live.export", tooltip="This panel's plot and points as files"),
        Binding("o", "output", "Output", id="live.output", tooltip="What the trainer printed, and back", show=False),
        Binding("escape", "home", "Home", id="live.home", tooltip="Back to Home; the run goes on"),
        Binding("z", "zoom", "Zoom", id="live.zoom", tooltip="The focused panel alone, and back", show=False),
        *(
            Binding(
                str(index), f"solo({index})", f"{panel.TITLE} alone, and back", id=f"live.panel_{index}", show=False
            )
            for index, panel in enumerate(PANELS, start=1)
        ),
        *plot_bindings("live"),
    ]

    class Ready(Message):
        """A view is waiting."""

    def __init__(self, paths: RunPaths) -> None:
        super().__init__()
        self.paths = paths
        self.view: RunView | None = None
        services = self.app.services
        source = RunSource(paths, services.clock, services.make_sampler)
        self._watcher = Watcher(source, self._tell, f"follow {paths.run_id}")
        self._asked_stop = False
        self._answered_seq = -1
        self._changes_sent: set[str] = set()

    def _tell(self) -> None:
        self.post_message(self.Ready())

    def compose(self) -> ComposeResult:
        """See the class."""
        yield HeaderPanel("header")
        yield TimelinePanel("timeline")
        with Container(id="body"):
            for panel in PANELS:
                yield panel()
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """Follow from now on; plots have a slower rhythm of their own."""
        for index, panel in enumerate(self.panels, start=1):
            panel.border_title = panel.title = f"{index} {panel.TITLE}"
        self._watcher.start()
        self.set_interval(PLOT_INTERVAL_S, self._draw_plots)

    def on_unmount(self) -> None:
        """Stop following; the run is not touched."""
        self._watcher.stop()

    def on_resize(self, event: Resize) -> None:
        """The rich layout where there is room for it."""
        self.set_class(event.size.width >= WIDE[0] and event.size.height >= WIDE[1], "wide")

    @property
    def panels(self) -> list[Panel | MessagesPanel]:
        """The panels of the body in reading order."""
        return [panel for panel in self.query("#body > .panel").results() if isinstance(panel, Panel | MessagesPanel)]

    @on(Ready)
    def _ready(self) -> None:
        view = self._watcher.take()
        if view is None or not self.app.has_screen(self):
            return
        previous, self.view = self.view, view
        with self.app.batch_update():
            self.set_class(bool(view.state.predictions), "predicts")  # a row of the timeline is for them
            for panel in self.query(Panel):
                panel.show(view)
            self.query_one(MessagesPanel).show(view)
            if previous is None:
                self._draw_plots()
        if previous is None or previous.status is not view.status:
            self._status_changed(previous, view)
        self._report_answers(view, is_first=previous is None)

    def _draw_plots(self) -> None:
        for panel in self.query(Panel):
            if panel.is_plot and panel.view is not panel.drawn:
                panel.redraw()

    def _status_changed(self, previous: RunView | None, view: RunView) -> None:
        self.refresh_bindings()
        self.app.services.trainers.reap()
        if previous is None or not previous.status.is_live:
            return
        if view.status in (RunStatus.CRASHED, RunStatus.FAILED):
            self.app.notify(view.report.reason, title=f"{view.status.value}", severity="error", markup=False)
        elif view.status is RunStatus.COMPLETED:
            self.app.notify(f"completed at step {view.state.step}", title=view.run_id, markup=False)

    def _report_answers(self, view: RunView, *, is_first: bool) -> None:
        """A command that the trainer refused is said aloud, once; so is a change made here that it has made."""
        for ack in view.state.control_acks:
            if ack.seq > self._answered_seq:
                self._answered_seq = ack.seq
                if ack.ok and ack.id in self._changes_sent:
                    self.app.notify(one_line(ack.message), title="changed", markup=False)
                elif not ack.ok and not is_first:
                    self.app.notify(
                        one_line(ack.message),
                        title=f"{one_line(ack.command)} refused",
                        severity="warning",
                        markup=False,
                    )

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Grey out what makes no sense in the run's status."""
        allowed = ALLOWED.get(action)
        if allowed is None:
            return True
        return True if self.view is not None and self.view.status in allowed else None

    def _send(self, command: str, said: str, args: Mapping[str, object] | None = None) -> str | None:
        """Send a command and say so; returns its id, None where it could not be sent."""
        try:
            command_id = send_command(self.paths, command, args)
        except WorkbenchError as error:
            self.app.notify(error.line(), severity="error", markup=False)
            return None
        self.app.notify(said, markup=False)
        return command_id

    def action_toggle_pause(self) -> None:
        """Pause, or let a paused run go on."""
        if self.view is not None and self.view.status is RunStatus.PAUSED:
            self._send("continue", "going on")
        else:
            self._send("pause", "pausing after this step")

    def action_checkpoint(self) -> None:
        """Ask for a checkpoint."""
        self._send("checkpoint", "saving after this step")

    def action_stop(self) -> None:
        """Ask, then stop the run with a checkpoint."""

        def answered(yes: bool | None) -> None:
            if yes:
                is_queued = self.view is not None and self.view.status is RunStatus.QUEUED
                self._send("stop", "leaving the queue" if is_queued else "stopping after this step, with a checkpoint")

        if self.view is not None and self.view.status is RunStatus.QUEUED:
            question, no = "Take this run out of its queue?\nIt can be resumed.", "Let it wait"
        else:
            question = "Stop this run?\nIt finishes its step, writes a checkpoint, and can be resumed."
            no = "Let it train"
        self.app.push_screen(Confirm(question, "Stop it", no), answered)

    def action_resume(self) -> None:
        """Start a trainer on the last checkpoint; ask how far, where the run has got to its end."""
        view = self.view
        if view is None or view.status is not RunStatus.COMPLETED:
            self.app.resume_run(self.paths)
            return

        def answered(steps: int | None) -> None:
            if steps is not None:
                self.app.resume_run(self.paths, steps=steps)

        self.app.push_screen(AskSteps(view.state.step), answered)

    def action_output(self) -> None:
        """What the trainer printed, and back."""
        for panel in self.query(MessagesPanel):
            panel.toggle_output()

    def on_click(self, event: Click) -> None:
        """A double click: that panel alone, or all again."""
        if event.chain == 2 and isinstance(event.widget, Panel | MessagesPanel) and event.widget in self.panels:
            self._solo(None if event.widget.has_class("alone") else event.widget)

    def action_edit(self) -> None:
        """Ask for other values of what may change live, and send those that were changed."""
        view = self.view
        if view is None or view.config is None:
            self.app.notify("the run's configuration cannot be read", severity="error")
            return
        values = {key: live_value(view.state, key, value) for key, value in configured_values(view.config).items()}

        def answered(changes: dict[str, float] | None) -> None:
            for key, value in (changes or {}).items():
                sent = self._send("set", f"{key} = {value:g} after this step", {"key": key, "value": value})
                if sent is not None:
                    self._changes_sent.add(sent)

        self.app.push_screen(LiveEdit(values), answered)

    def action_export(self) -> None:
        """Write the plot of the panel that is alone or has the focus (else the loss) into the run's exports/."""
        chosen = [*self.query(".panel.alone"), self.focused, *self.query(LossPanel)]
        panel = next((panel for panel in chosen if isinstance(panel, PlotPanel)), None)
        if self.view is not None and panel is not None:
            export_in_background(self.app, self.paths, self.view.state, panel, self.axis)

    # Plots

    def plot_range(self) -> Range:
        """From the first to the last step, on the axis."""
        return full_range(self.view.state.series if self.view is not None else {}, self.axis.by)

    def convert_x(self, x: float, old: By, new: By) -> float:
        """Through the run's own steps."""
        if self.view is None:
            return float("nan")
        series = self.view.state.series
        return float(on_axis(series, np.array([step_at(series, x, old)]), new)[0])

    def axis_changed(self) -> None:
        """Every panel shows the same stretch and moment."""
        with self.app.batch_update():
            for panel in self.query(Panel):
                panel.set_axis(self.axis)

    def action_home(self) -> None:
        """Back from one panel to all, then back to Home."""
        if self.has_class("solo"):
            self._solo(None)
        else:
            self.app.show_home()

    def action_solo(self, index: int) -> None:
        """One panel alone, or all again."""
        for panel in self.panels[index - 1 : index]:  # none before the screen is made
            self._solo(None if panel.has_class("alone") else panel)

    def action_zoom(self) -> None:
        """The focused panel alone, or all again."""
        focused = self.focused
        if self.has_class("solo"):
            self._solo(None)
        elif isinstance(focused, Panel | MessagesPanel):
            self._solo(focused)

    def _solo(self, panel: Panel | MessagesPanel | None) -> None:
        self.set_class(panel is not None, "solo")
        for other in self.panels:
            other.set_class(other is panel, "alone")
        if panel is not None:
            panel.focus()
