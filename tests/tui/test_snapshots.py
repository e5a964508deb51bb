"""Pictures of the screens, large and small: a change in any cell is shown, and accepted with --snapshot-update."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot

from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui import home_data
from gpuworkbench.tui.panels import memory
from gpuworkbench.tui.themes import DEFAULT_THEME, THEMES
from tests.fixtures.fake_nvml import FakeNvml, rtx5080
from tests.fixtures.recorded_run import PRESETS, card_run, completed_run, crashed_run
from tests.fixtures.run_family import run_family
from tests.tui.helpers import HOST, RICH, SMALL, home_is_filled, live_is_filled, make_app
from tests.tui.test_runs_screen import runs_are_compared, runs_are_listed

Compare = Callable[..., bool]
HUGE = (200, 60)
Before = Callable[[Pilot[int]], Awaitable[object]]


@pytest.fixture(autouse=True)
def _frozen_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(home_data, "iter_preset_paths", lambda: sorted(PRESETS.glob("*.toml")))
    for module in (home_data, memory):
        monkeypatch.setattr(module, "probe_host", lambda: HOST)
    monkeypatch.setattr(home_data.psutil, "cpu_percent", lambda: 12.0)
    monkeypatch.setattr(home_data, "INTERVAL_S", 1000.0)
    monkeypatch.setattr(home_data, "FIRST_INTERVAL_S", 1000.0)


@pytest.mark.parametrize("size", [RICH, SMALL], ids=["rich", "small"])
@pytest.mark.parametrize("has_card", [False, True], ids=["cpu", "card"])
def test_home(tmp_path: Path, snap_compare: Compare, size: tuple[int, int], has_card: bool) -> None:
    completed_run(tmp_path / "runs"), crashed_run(tmp_path / "runs")
    app = make_app(tmp_path / "runs", nvml=FakeNvml(rtx5080()) if has_card else None)
    assert snap_compare(app, terminal_size=size, run_before=home_is_filled)


@pytest.mark.parametrize("size", [RICH, SMALL], ids=["rich", "small"])
@pytest.mark.parametrize("make_run", [completed_run, crashed_run, card_run])
def test_live(
    tmp_path: Path, snap_compare: Compare, size: tuple[int, int], make_run: Callable[[Path], RunPaths]
) -> None:
    app = make_app(tmp_path / "runs", make_run(tmp_path / "runs"))
    assert snap_compare(app, terminal_size=size, run_before=live_is_filled)


@pytest.fixture
def _utc() -> Iterator[None]:
    """Times of day as in Greenwich."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


async def _runs_listed(pilot: Pilot[int]) -> None:
    await runs_are_listed(pilot)
    await pilot.press("space", "space")
    await pilot.pause(0.1)


@pytest.mark.parametrize("size", [RICH, SMALL], ids=["rich", "small"])
@pytest.mark.usefixtures("_utc")
def test_runs(tmp_path: Path, snap_compare: Compare, size: tuple[int, int]) -> None:
    run_family(tmp_path / "runs")
    assert snap_compare(make_app(tmp_path / "runs"), terminal_size=size, run_before=_runs_listed)


@pytest.mark.parametrize(
    ("theme", "size"),
    [
        *((DEFAULT_THEME, size) for size in (RICH, SMALL, HUGE)),
        *((theme.name, RICH) for theme in THEMES if theme.name != DEFAULT_THEME),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}x{value[1]}",
)
def test_compare(tmp_path: Path, snap_compare: Compare, size: tuple[int, int], theme: str) -> None:
    family = run_family(tmp_path / "runs")
    app = make_app(tmp_path / "runs")
    app.theme = theme

    async def fill(pilot: Pilot[int]) -> None:
        await runs_are_compared(pilot, family)
        await pilot.press("right_square_bracket", "shift+left")
        await pilot.pause(0.2)

    assert snap_compare(app, terminal_size=size, run_before=fill)


def test_help(tmp_path: Path, snap_compare: Compare) -> None:
    async def ask(pilot: Pilot[int]) -> None:
        await live_is_filled(pilot)
        await pilot.press("question_mark")
        await pilot.pause(0.1)

    app = make_app(tmp_path / "runs", completed_run(tmp_path / "runs"))
    assert snap_compare(app, terminal_size=SMALL, run_before=ask)
