"""Pictures of Sample and Doctor, large and small; accepted with --snapshot-update."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui.sampling import Stage
from tests.tui.helpers import RICH, SMALL, home_is_filled, live_is_filled, make_app
from tests.tui.test_doctor_screen import _recorded, doctor_is_filled
from tests.tui.test_sample_screen import ask, is_at, run, sample_is_filled, started

__all__ = ["_recorded", "run", "started"]  # fixtures


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.parametrize("size", [RICH, SMALL], ids=["rich", "small"])
@pytest.mark.usefixtures("started")
def test_sample(tmp_path: Path, snap_compare: Callable[..., bool], size: tuple[int, int], run: RunPaths) -> None:
    async def write(pilot: Pilot[int]) -> None:
        await live_is_filled(pilot)
        await pilot.press("t")
        screen = await sample_is_filled(pilot)
        await pilot.press("ctrl+t")
        await pilot.pause(0.2)
        await sample_is_filled(pilot)
        ask(screen, "def add(a, b):", tokens="60")
        await pilot.press("ctrl+r")
        for pane in (0, 1):
            await is_at(pilot, screen, Stage.DONE, pane)
        for box in (*screen.query(Input), *screen.query(TextArea)):
            box.cursor_blink = False
        screen.query_one("#tokens").focus()
        await pilot.pause(0.3)

    assert snap_compare(make_app(tmp_path / "runs", run), terminal_size=size, run_before=write)


@pytest.mark.parametrize("size", [RICH, SMALL], ids=["rich", "small"])
@pytest.mark.usefixtures("_recorded")
def test_doctor(tmp_path: Path, snap_compare: Callable[..., bool], size: tuple[int, int]) -> None:
    async def ask_doctor(pilot: Pilot[int]) -> None:
        await home_is_filled(pilot)
        await pilot.press("h")
        await doctor_is_filled(pilot)

    assert snap_compare(make_app(tmp_path / "runs"), terminal_size=size, run_before=ask_doctor)
