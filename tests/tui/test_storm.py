"""Random keys, clicks and sizes on every screen: no exception, whatever comes. `make soak` does many more."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest
from textual.events import Resize
from textual.geometry import Size

from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.screens.home import Home
from tests.fixtures.recorded_run import card_run, hostile_run, new_run
from tests.fixtures.run_family import run_family
from tests.tui.helpers import RICH, home_is_filled, make_app

KEYS = [
    *"abcdefghijklmnoprstuvwxyz0123456789SX,.+-=[]/?",
    *("left", "right", "up", "down", "shift+left", "shift+right", "home", "end", "pageup", "pagedown"),
    *("tab", "shift+tab", "enter", "space", "escape", "delete", "backspace", "ctrl+s"),
]
SOAK = "GPUWORKBENCH_SOAK_KEYS"
N_KEYS = int(os.environ.get(SOAK, "200"))
N_SIZES = max(N_KEYS // 10, 20)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    # What the keys would start or leave is not the matter here.
    monkeypatch.setattr(WorkbenchApp, "launch", lambda *_, **__: None)
    monkeypatch.setattr(WorkbenchApp, "resume_run", lambda *_: None)
    monkeypatch.setattr(WorkbenchApp, "exit", lambda *_, **__: None)


def all_runs(runs: Path) -> list[RunPaths]:
    return [*run_family(runs), card_run(runs), hostile_run(runs), new_run(runs, "empty")]


@pytest.mark.timeout(7200 if SOAK in os.environ else 300)
async def test_random_keys(tmp_path: Path) -> None:
    runs = all_runs(tmp_path)
    app = make_app(tmp_path)
    rng = random.Random(11)
    async with app.run_test(size=RICH) as pilot:
        await home_is_filled(pilot)
        for number in range(N_KEYS):
            if number % 40 == 0:
                await bring_up(app, rng, runs)
            app.simulate_key(rng.choice(KEYS))
            if number % 4 == 0:
                await settle(app, 0.005)
        await settle(app, 1.0)


@pytest.mark.timeout(7200 if SOAK in os.environ else 300)
async def test_random_sizes(tmp_path: Path) -> None:
    """Among these are sizes that a screen in the background would lay out at in turns, for ever (screens/sized.py)."""
    runs = all_runs(tmp_path)
    app = make_app(tmp_path)
    rng = random.Random(13)
    async with app.run_test(size=RICH) as pilot:
        await home_is_filled(pilot)
        for number in range(N_SIZES):
            if number % 5 == 0:
                await bring_up(app, rng, runs)
            width, height = rng.randint(1, 240), rng.randint(1, 80)
            app.post_message(Resize(Size(width, height), Size(width, height)))
            await settle(app, 0.02)
            app.simulate_key(rng.choice(["left", "plus", "x", "2", "escape"]))
        await settle(app, 1.0)


async def settle(app: WorkbenchApp, seconds: float) -> None:
    """Let the app run. Not with the pilot's pause: that waits for every widget, of which the keys remove some."""
    await asyncio.sleep(seconds)
    assert app._exception is None, app._exception


async def bring_up(app: WorkbenchApp, rng: random.Random, runs: list[RunPaths]) -> None:
    """Another screen on top, from Home."""
    assert any(isinstance(screen, Home) for screen in app.screen_stack), "the keys left Home"
    while not isinstance(app.screen, Home):
        for _ in range(600):  # a screen is taken away whole: only this test would take it away half made
            await settle(app, 0.05)
            if app.screen.is_mounted and app.screen.is_running:
                break
        if not isinstance(app.screen, Home):
            await app.pop_screen()
    there = [paths for paths in runs if paths.root.is_dir()]
    which = rng.randrange(4)
    if which == 0:
        app.show_runs()
    elif which == 1 and len(there) > 2:
        for paths in rng.sample(there, 3):
            app.services.marks.toggle(paths.root)
        app.compare_marked(None)
    elif which == 2 and there:
        app.open_run(rng.choice(there))
