"""The app: themes, global keys, and what screens ask for (open a run, start a preset, resume)."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.screen import ModalScreen, Screen

from gpuworkbench.config.presets import load_preset
from gpuworkbench.errors import WorkbenchError
from gpuworkbench.runs.control import send_command
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.text import safe_text
from gpuworkbench.tui import later
from gpuworkbench.tui.base_app import EVERYWHERE, BaseApp
from gpuworkbench.tui.home_data import HomeView
from gpuworkbench.tui.launching import (
    NATIVE_THREADS,
    Launch,
    LaunchDone,
    LaunchFailed,
    LaunchProgress,
    LaunchRefused,
    Progress,
    start_launch,
)
from gpuworkbench.tui.screens.dialogs import Choice
from gpuworkbench.tui.screens.help import HelpScreen, keys_of
from gpuworkbench.tui.screens.home import Home, machine_of
from gpuworkbench.tui.services import Services
from gpuworkbench.tui.widgets.job_bar import JobBar

if TYPE_CHECKING:
    from gpuworkbench.launch.create import LaunchRequest
    from gpuworkbench.tui.form.draft import Draft
    from gpuworkbench.tui.form.outlook import Machine
    from gpuworkbench.tui.screens.launch import LaunchScreen

MAX_RUN_COMMANDS = 200  # the newest; a palette of thousands of lines answers slowly


class WorkbenchApp(BaseApp):
    """Home at the bottom of the stack, a live run above it."""

    CSS_PATH: ClassVar[list[str | PurePath]] = ["app.tcss", "runs.tcss", "launch.tcss", "further.tcss"]
    TITLE = "gpuworkbench"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "Help", key_display="?", id="app.help", tooltip="The keys of this screen"),
        Binding("q", "quit", "Quit", id="app.quit", tooltip="Leave; runs go on training"),
        Binding("ctrl+q", "quit", "Quit", show=False, priority=True, id="app.quit_anywhere", system=True),
        *EVERYWHERE,
    ]

    def __init__(self, services: Services, open_first: RunPaths | None = None) -> None:
        super().__init__(services)
        self._open_first = open_first
        self._launching = ""
        self._again: Callable[[str], None] | None = None  # the last launch, in the queue or sharing the card
        self._drafts: dict[Path, Draft] = {}
        self._drafts_of_runs: dict[RunPaths, Draft] = {}

    def on_mount(self) -> None:
        """Home, and the run that the command line named."""
        self.push_screen(Home())
        if self._open_first is not None:
            self.open_run(self._open_first)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: Textual's own, every key that does something now, every preset, every run."""
        yield from super().get_system_commands(screen)
        yield SystemCommand("Help", "The keys of this screen", lambda: self.call_later(self.action_help))
        for active in screen.active_bindings.values():
            binding = active.binding
            is_ours = bool(binding.id) and not binding.system  # Textual's own keys for moving about have no id
            if active.node is not self and active.enabled and binding.description and is_ours:
                action, node = binding.action, active.node
                yield SystemCommand(
                    binding.description,
                    binding.tooltip or "",
                    lambda action=action, node=node: self._run_later(node, action),
                )
        home = next((one for one in self.screen_stack if isinstance(one, Home)), None)
        if home is not None and home.view is not None and not isinstance(screen, ModalScreen):
            yield from self._places(home.view)

    def _places(self, view: HomeView) -> Iterable[SystemCommand]:
        """Where one can go by name: the form of a preset, the screen of a run."""
        machine = machine_of(view)
        for preset in view.presets:
            if preset.config is not None:
                where, is_twin = preset.path or preset.name, preset.runs_as == "twin"
                title = f"Preset {safe_text(preset.name, max_chars=80)}"
                yield SystemCommand(
                    title, preset.description, partial(self.open_preset, where, machine, cpu_twin=is_twin)
                )
        for run in view.runs[:MAX_RUN_COMMANDS]:
            info = run.info
            title = f"Run {safe_text(info.name or info.run_id, max_chars=80)}"
            words = f"{info.status.value}, {safe_text(info.run_id)}"
            yield SystemCommand(title, words, partial(self.open_run, RunPaths(Path(info.path))))

    def _run_later(self, node: DOMNode, action: str) -> None:
        self.call_later(self.run_action, action, node)

    # What screens ask for

    def open_run(self, paths: RunPaths) -> None:
        """Show a run, in place of one or of the form that are shown."""
        if later.is_a(self.screen, later.LIVE, later.LAUNCH):
            self.pop_screen()
        self.push_screen(later.make(later.LIVE, paths))

    def show_home(self) -> None:
        """Back to where a run was opened from."""
        if self.shown_run is not None:
            self.pop_screen()

    def show_runs(self) -> None:
        """The screen of all runs."""
        self.push_screen(later.make(later.RUNS))

    def compare_marked(self, chosen: RunPaths | None) -> None:
        """The marked runs side by side; with one marked, that and the chosen one."""
        runs = self.services.marks.runs()
        if len(runs) == 1 and chosen is not None and chosen not in runs:
            runs.append(chosen)
        if len(runs) < 2:
            self.notify("mark two or more runs with space first", severity="warning")
            return
        self.push_screen(later.make(later.COMPARE, runs))

    def open_preset(self, name_or_path: str, machine: Machine | None, *, cpu_twin: bool) -> None:
        """Show a preset as a form, with what was changed in it before."""
        from gpuworkbench.tui.form.draft import Draft

        try:
            draft = Draft(load_preset(name_or_path), is_twin=cpu_twin)
        except WorkbenchError as error:
            self.notify(error.line(), severity="error", timeout=15, markup=False)
            return
        kept = self._drafts.get(draft.preset.path)
        if kept is not None:
            draft = replace(kept, preset=draft.preset)  # its file may have changed since; what was typed stays
        self.push_screen(later.make(later.LAUNCH, draft, machine))

    def keep_draft(self, draft: Draft) -> None:
        """Remember what is being changed in a preset, for as long as the app lives."""
        self._drafts[draft.preset.path] = draft

    def start_preset(self, name: str, *, cpu_twin: bool) -> None:
        """Prepare and start a new run of a preset as it is."""
        from gpuworkbench.launch.create import LaunchRequest

        if cpu_twin:
            self.notify(f"No card here is enough for {name}: starting its CPU twin", markup=False)
        request = LaunchRequest(preset=name, runs_dir=self.services.runs_dir, cpu_twin=cpu_twin)
        self.launch(request, f"{name} (CPU twin)" if cpu_twin else name)

    def launch(self, request: LaunchRequest, label: str, draft: Draft | None = None) -> None:
        """Prepare and start a new run in the background, then show it."""
        if not self._may_launch(label):
            return

        def prepare(progress: Progress) -> tuple[RunPaths, Path]:
            from gpuworkbench.launch.create import create

            paths = create(request, on_progress=progress)
            if draft is not None:
                self._drafts_of_runs[paths] = draft
            return paths, paths.run_toml

        def again(claim: str) -> None:
            self.launch(request._replace(queue=claim == "queue", share=claim == "share"), label, draft)

        self._again = again
        start_launch(Launch(label, prepare, is_new=True, queue=request.queue, share=request.share), self.post_message)

    def resume_run(
        self, paths: RunPaths, *, steps: int | None = None, queue: bool = False, share: bool = False
    ) -> None:
        """Check in the background that a run may go on (up to `steps`), and start its trainer."""
        if not self._may_launch(paths.run_id):
            return

        def prepare(_progress: Progress) -> tuple[RunPaths, Path]:
            from gpuworkbench.launch.resume import resume

            return paths, resume(paths, steps=steps, queue=queue or share).run_file

        self._again = lambda claim: self.resume_run(paths, steps=steps, queue=claim == "queue", share=claim == "share")
        start_launch(Launch(paths.run_id, prepare, is_new=False, queue=queue, share=share), self.post_message)

    def _may_launch(self, name: str) -> bool:
        """One launch at a time: they would share the data cache and the processor."""
        if self._launching:
            self.notify(f"{safe_text(self._launching)} is still being prepared", severity="warning", markup=False)
            return False
        self._launching = name
        self._show_progress(name, "preparing", None)
        return True

    def _show_progress(self, name: str, stage: str, fraction: float | None) -> None:
        for screen in self.screen_stack:
            for bar in screen.query(JobBar):
                bar.progress(name, stage, fraction)

    @on(LaunchProgress)
    def _launch_progress(self, message: LaunchProgress) -> None:
        self._show_progress(message.name, message.stage, message.fraction)

    @on(LaunchDone)
    def _launch_done(self, message: LaunchDone) -> None:
        self._launch_over()
        self.services.trainers.add(message.trainer)
        paths = message.trainer.paths
        if self.shown_run == paths:
            self.notify("resuming", title=safe_text(message.name), markup=False)
        else:
            self.open_run(paths)

    @on(LaunchFailed)
    def _launch_failed(self, message: LaunchFailed) -> None:
        self._launch_over()
        if message.busy:
            self._ask_to_queue(message.busy)
        elif (form := self._form) is not None:
            form.refused(message.line)
        else:
            self.notify(message.line, title=safe_text(message.name), severity="error", timeout=15, markup=False)

    @on(LaunchRefused)
    def _launch_refused(self, message: LaunchRefused) -> None:
        """A trainer refused after it was started: back to where it was started from."""
        self.services.trainers.reap()
        draft = self._drafts_of_runs.pop(message.paths, None)
        if self.shown_run == message.paths and not message.paths.root.exists():
            self.pop_screen()
            if draft is not None:
                self.push_screen(later.make(later.LAUNCH, draft, refusal=message.line))
                return
        self.notify(message.line, title=safe_text(message.name), severity="error", timeout=15, markup=False)

    @property
    def _form(self) -> LaunchScreen | None:
        """The form, where that is on top."""
        return self.screen if later.is_a(self.screen, later.LAUNCH) else None  # type: ignore[return-value]

    def _ask_to_queue(self, busy: str) -> None:
        """A card in use: wait for it, share it, or leave it."""
        again = self._again
        answers = [("queue", "Wait in its queue"), ("share", "Share the card"), ("cancel", "Cancel")]

        def answered(answer: str | None) -> None:
            if answer in ("queue", "share") and again is not None:
                again(answer)

        question = f"{busy}.\nA queued run starts by itself, even when the app has ended."
        self.push_screen(Choice(question, answers), answered)

    def _launch_over(self) -> None:
        self._launching = ""
        for screen in self.screen_stack:
            for bar in screen.query(JobBar):
                bar.done()

    # Global keys

    def action_help(self) -> None:
        """The keys of the screen that is shown."""
        screen = self.screen
        self.push_screen(HelpScreen(f"Keys of {type(screen).__name__}", keys_of(screen)))

    async def action_quit(self) -> None:
        """Leave. With a live run that was started here, ask what becomes of it; it goes on by default."""
        live = self.services.trainers.live()
        if not live or isinstance(self.screen, Choice):
            self.exit(0)
            return
        names = ", ".join(safe_text(paths.run_id) for paths in live[:3]) + (", …" if len(live) > 3 else "")
        answers = [("leave", "Leave it training"), ("stop", "Stop it with a checkpoint"), ("cancel", "Stay")]

        def answered(answer: str | None) -> None:
            if answer == "stop":
                for paths in live:
                    if probe_lock(paths.lock) is not None:
                        send_command(paths, "stop")
            if answer in ("leave", "stop"):
                self.exit(0)

        self.push_screen(Choice(f"{names} is still training.\nWhat becomes of it?", answers), answered)


def run_app(services: Services, open_first: RunPaths | None = None) -> int:
    """Run the app to its end; returns the exit code of the process."""
    app = WorkbenchApp(services, open_first)
    app.run()
    code = app.return_code or 0
    if any(thread.name.startswith(NATIVE_THREADS) for thread in threading.enumerate()):
        # Data is being prepared. Native code on a thread would be torn down with the interpreter, and abort.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
