"""Shared by the app's tests: an app on a directory of runs, what its screen says, and waiting with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from textual.app import App
from textual.pilot import Pilot

from gpuworkbench.gpu.host import Host
from gpuworkbench.gpu.nvml import Sampler
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.screens.home import Home
from gpuworkbench.tui.screens.live import Live
from gpuworkbench.tui.services import Services
from tests.fixtures.fake_nvml import FakeNvml
from tests.fixtures.recorded_run import GIB, NOW

RICH, SMALL = (140, 40), (80, 24)
HOST = Host(
    memory_total_bytes=32 * GIB,
    memory_available_bytes=20 * GIB,
    cpu_name="AMD Ryzen 7 9800X3D",
    physical_cores=8,
    is_wsl=False,
)


def make_app(runs: Path, first: RunPaths | None = None, nvml: FakeNvml | None = None) -> WorkbenchApp:
    """The app with a frozen clock and the cards of `nvml` (default: none)."""
    cards = nvml or FakeNvml()
    services = Services(runs_dir=runs, clock=lambda: NOW, make_sampler=lambda: Sampler(cards, environ={}))
    return WorkbenchApp(services, first)


def screen_lines(app: App[int]) -> list[str]:
    """The characters of the screen, line by line, as a terminal would get them."""
    return ["".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()]


def screen_text(app: App[int]) -> str:
    """`screen_lines` as one text."""
    return "\n".join(screen_lines(app))


async def until(
    pilot: Pilot[int], condition: Callable[[], object], what: str = "condition", timeout_s: float = 30.0
) -> float:
    """Let the app run until `condition()`; returns the seconds that took. AssertionError when time is up."""
    started = time.monotonic()
    while not condition():
        took = time.monotonic() - started
        assert took < timeout_s, f"no {what} within {timeout_s} s; the screen:\n{screen_text(pilot.app)}"
        await pilot.pause(0.02)
    return time.monotonic() - started


async def home_is_filled(pilot: Pilot[int]) -> Home:
    """Home with its first view drawn."""
    await until(pilot, lambda: isinstance(pilot.app.screen, Home) and pilot.app.screen.view is not None, "home")
    await pilot.pause(0.1)
    assert isinstance(pilot.app.screen, Home)
    return pilot.app.screen


async def live_is_filled(pilot: Pilot[int]) -> Live:
    """The live screen with the whole log taken in and drawn."""
    await until(pilot, lambda: isinstance(pilot.app.screen, Live) and pilot.app.screen.view is not None, "live screen")
    live = pilot.app.screen
    assert isinstance(live, Live)
    await until(pilot, lambda: live.view is not None and live.view.state.n_events > 0, "events")
    await until(pilot, lambda: all(panel.view is live.view for panel in live.panels), "panels")
    await pilot.pause(0.1)
    live._draw_plots()
    await pilot.pause(0.1)
    return live
