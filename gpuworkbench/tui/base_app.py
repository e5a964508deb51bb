"""What holds wherever one is in the app: settings that stay, being told of ends, signals, Sample and Doctor."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from textual import on
from textual.actions import ActionParseResult
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.events import Event, Key
from textual.message import Message
from textual.notifications import SeverityLevel
from textual.screen import Screen

from gpuworkbench.config.user_settings import NOTIFY_BY
from gpuworkbench.errors import WorkbenchError
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.status import RunStatus
from gpuworkbench.text import safe_text
from gpuworkbench.tui import later
from gpuworkbench.tui.background import in_background
from gpuworkbench.tui.notices import Ended, EndsSource, tell
from gpuworkbench.tui.screens.home import Home
from gpuworkbench.tui.screens.sized import SizedScreen
from gpuworkbench.tui.services import Services
from gpuworkbench.tui.themes import DEFAULT_THEME, THEMES
from gpuworkbench.tui.watch import Watcher
from gpuworkbench.tui.widgets.run_table import RunTable

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
LEAVE_WITHIN_S = 5.0  # a terminal that is gone may block whoever writes to it
SAID = {"off": "nothing", "bell": "the terminal's bell", "desktop": "a desktop notification"}

# The app adds them behind its own, so that Help and Quit come first.
EVERYWHERE: list[BindingType] = [
    Binding("t", "sample", "Sample", id="app.sample", tooltip="Let this run's checkpoints write text", show=False),
    Binding("h", "doctor", "Doctor", id="app.doctor", tooltip="What keeps a run from working here", show=False),
    Binding(
        "n",
        "next_notify",
        "Tell of ends",
        id="app.notify",
        tooltip="When a run completes or fails: nothing, bell, desktop",
        show=False,
    ),
]


class BaseApp(App[int]):
    """See the module."""

    class RunsEnded(Message):
        """Runs that ended are waiting."""

    def __init__(self, services: Services) -> None:
        super().__init__()
        self.services = services
        self._ends: Watcher[tuple[Ended, ...]] | None = None
        self._n_told = 0
        for theme in THEMES:
            self.register_theme(theme)
        wanted = services.settings.value.theme
        self._first_theme = wanted if wanted in self.available_themes else DEFAULT_THEME
        self.theme = self._first_theme

    def get_default_screen(self) -> Screen[None]:
        """The empty screen below all others."""
        return SizedScreen(id="_default")

    def on_mount(self) -> None:
        """Watch for ends where that is wanted, and for signals where there is a terminal to be given back."""
        if self.services.settings.problem:
            self.notify(safe_text(self.services.settings.problem), severity="warning", timeout=15, markup=False)
        self._watch_ends()
        if not self.is_headless:
            for number in SIGNALS:
                asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)

    def on_unmount(self) -> None:
        """Nothing is watched any more."""
        self._stop_watching_ends()

    def _signalled(self, number: signal.Signals) -> None:
        """Leave, with the terminal as it was; trainers have sessions of their own and go on."""
        code = 128 + number
        # Not to be waited for: the terminal may be gone, and with it whoever takes what is written to it.
        timer = threading.Timer(LEAVE_WITHIN_S, os._exit, (code,))
        timer.daemon = True
        timer.start()
        self.exit(code, return_code=code)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Textual's own, and ours that hold everywhere."""
        yield from super().get_system_commands(screen)
        if self.check_action("sample", ()):
            yield SystemCommand("Sample", "Let a checkpoint write text", lambda: self._later("sample"))
        if self.check_action("doctor", ()):
            yield SystemCommand("Doctor", "What keeps a run from working here", lambda: self._later("doctor"))
        for by in NOTIFY_BY:
            words = f"When a run completes or fails: {SAID[by]}"
            yield SystemCommand(f"Tell of ends: {by}", words, lambda by=by: self._later(f"notify_by('{by}')"))

    def _later(self, action: str) -> None:
        self.call_later(self.run_action, action)

    async def on_event(self, event: Event) -> None:
        """Keys pressed before the end, and read while screens are taken apart, are for nobody."""
        if self.is_running or not isinstance(event, Key):
            await super().on_event(event)

    async def run_action(
        self,
        action: str | ActionParseResult,
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """Nor does a screen that is taken apart act on a key that it got before."""
        return self.is_running and await super().run_action(action, default_namespace, namespaces)

    # Settings

    def watch_theme(self, name: str) -> None:
        """Another theme was chosen: keep it for the next time."""
        if name != self._first_theme:
            self._first_theme = ""  # from now on, any choice is kept, the first one again too
            self._keep(theme=name)

    def action_next_notify(self) -> None:
        """The next way of being told."""
        now = NOTIFY_BY.index(self.services.settings.value.notify)
        self.action_notify_by(NOTIFY_BY[(now + 1) % len(NOTIFY_BY)])

    def action_notify_by(self, by: str) -> None:
        """Be told so, from now on and the next time; a sound or notification shows at once what it is like."""
        self._keep(notify=by)
        self.notify(f"when a run completes or fails: {SAID[by]}", title="notifications", markup=False)
        self._tell("this is how a run's end is told")
        self._watch_ends()

    def _keep(self, **changes: str) -> None:
        settings = self.services.settings
        settings.set(**changes)

        def failed(error: WorkbenchError) -> None:
            self.notify(safe_text(error.line()), severity="warning", markup=False)

        in_background(self, settings.store, lambda _: None, failed, "settings")

    # Ends

    def _watch_ends(self) -> None:
        if self.services.settings.value.notify == "off":
            self._stop_watching_ends()
        elif self._ends is None:
            services = self.services
            source = EndsSource(services.runs_dir, services.trainers.known, services.clock)
            self._n_told = 0
            self._ends = Watcher(source, lambda: self.post_message(self.RunsEnded()), "ends")
            self._ends.start()

    def _stop_watching_ends(self) -> None:
        if self._ends is not None:
            self._ends.stop()
            self._ends = None

    @on(RunsEnded)
    def _runs_ended(self) -> None:
        ended = self._ends.take() if self._ends is not None else None
        for end in (ended or ())[self._n_told :]:
            self._tell(end.words)
            shown = self.shown_run
            if shown is None or shown.run_id != end.run_id:
                is_good = end.status is RunStatus.COMPLETED
                severity: SeverityLevel = "information" if is_good else "error"
                self.notify(safe_text(end.words), title="a run ended", severity=severity, markup=False)
        self._n_told = max(self._n_told, len(ended or ()))

    def _tell(self, words: str) -> None:
        tell(words, self.services.settings.value.notify, os.environ, self.write_to_terminal)

    def write_to_terminal(self, sequence: str) -> None:
        """Write to the terminal itself, beside the screen."""
        if self._driver is not None and not self.is_headless:
            self._driver.write(sequence)

    # Screens

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Sampling begins where a run is chosen; the doctor does not call itself."""
        if action == "sample":
            return isinstance(self.screen, Home) or later.is_a(self.screen, later.RUNS, later.LIVE)
        if action == "doctor":
            return isinstance(self.screen, Home) or later.is_a(self.screen, later.RUNS, later.LIVE, later.SAMPLE)
        return True

    @property
    def shown_run(self) -> RunPaths | None:
        """The run on the live screen, where that is on top."""
        paths: RunPaths | None = getattr(self.screen, "paths", None) if later.is_a(self.screen, later.LIVE) else None
        return paths

    def has_screen(self, screen: Screen[Any]) -> bool:
        """Whether a screen is still wanted: one that was left may get a view while it is taken apart."""
        return screen in self.screen_stack and screen.is_mounted

    def leave(self, screen: Screen[Any]) -> None:
        """Back from a screen. A second escape, pressed before the first was seen, must not leave the next one too."""
        if self.screen is screen:
            self.pop_screen()

    def action_sample(self) -> None:
        """The chosen run; two marked ones side by side."""
        marked = self.services.marks.runs()
        if self.shown_run is not None:
            runs = [self.shown_run]
        elif len(marked) == 2:
            runs = marked
        else:
            # None yet, where the key was quicker than the screen.
            chosen = next((table.chosen for table in self.screen.query(RunTable)), None)
            runs = [RunPaths(Path(chosen))] if chosen is not None else []
        if not runs:
            self.notify("choose a run first", severity="warning", markup=False)
            return
        self.push_screen(later.make(later.SAMPLE, runs))

    def action_doctor(self) -> None:
        """The doctor's screen."""
        self.push_screen(later.make(later.DOCTOR))
