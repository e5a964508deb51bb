"""Pictures of the screens, large and small: a change in any cell is shown, and accepted with --snapshot-update."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from gpuworkbench.data import PreparedData, Preview
from gpuworkbench.data.meta import Meta, Part
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui import home_data, launch_data, preview_data
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.panels import memory
from gpuworkbench.tui.preview_data import DataView
from gpuworkbench.tui.screens.home import Home
from gpuworkbench.tui.screens.launch import LaunchScreen
from gpuworkbench.tui.themes import DEFAULT_THEME, THEMES
from gpuworkbench.tui.widgets.data_preview import DataPreview
from tests.fixtures.fake_nvml import FakeNvml, rtx5080
from tests.fixtures.recorded_run import PRESETS, card_run, completed_run, crashed_run
from tests.fixtures.run_family import run_family
from tests.tui.helpers import HOST, RICH, SMALL, home_is_filled, live_is_filled, make_app, until
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
    for module in (home_data, memory, launch_data):
        monkeypatch.setattr(module, "probe_host", lambda: HOST)
    monkeypatch.setattr(home_data.psutil, "cpu_percent", lambda: 12.0)
    monkeypatch.setattr(home_data, "INTERVAL_S", 1000.0)
    monkeypatch.setattr(home_data, "FIRST_INTERVAL_S", 1000.0)
    monkeypatch.setattr(launch_data, "INTERVAL_S", 1000.0)


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


RICH_STATES = ["changed", "twin"]
SMALL_STATES = ["fresh", "wrong", "takes", "data", "save"]


@pytest.mark.parametrize(
    ("state", "size"),
    [*((state, RICH) for state in RICH_STATES), *((state, SMALL) for state in SMALL_STATES)],
    ids=[*(f"{state}-rich" for state in RICH_STATES), *(f"{state}-small" for state in SMALL_STATES)],
)
def test_launch(
    tmp_path: Path, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], state: str
) -> None:
    """The form of a card's preset on that card: as it is, changed, wrong, its twin, its other views, being saved."""
    monkeypatch.setattr(preview_data, "look_at_data", lambda config, progress: recorded_data(tmp_path))

    async def open_form(pilot: Pilot[int]) -> None:
        app = pilot.app
        assert isinstance(app, WorkbenchApp)
        await until(pilot, lambda: isinstance(app.screen, Home), "home")
        app.open_preset(str(PRESETS / "rtx5080_gpt2_small_baseline.toml"), None, cpu_twin=state == "twin")
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen) and app.screen.outlook is not None, "form")
        screen = app.screen
        assert isinstance(screen, LaunchScreen)
        await until(pilot, lambda: screen.query_one(DataPreview).view.data is not None, "data")
        typed = {"changed": ("n_layer", "18"), "wrong": ("n_head", "7")}.get(state)
        if typed is not None:
            await pilot.press("slash", *typed[0], "enter", "home", "ctrl+k", *typed[1])
        views = {"takes": ["v"], "data": ["v", "v"], "save": ["ctrl+s"]}.get(state, [])
        await pilot.press(*views)
        await pilot.pause(0.2)
        for box in app.screen.query(Input):
            box.cursor_blink = False

    app = make_app(tmp_path / "runs", nvml=FakeNvml(rtx5080()))
    assert snap_compare(app, terminal_size=size, run_before=open_form)


def recorded_data(folder: Path) -> DataView:
    """Prepared data as the panel gets it, made from nothing."""
    meta = Meta(
        format=1,
        description="Python 3.11.7 standard library (394 modules)",
        tokenizer_name="gpt2",
        tokenizer_sha256="",
        vocab_size=50_257,
        n_documents=729,
        warnings=(),
        train=(Part(path="a", size_bytes=0, n_tokens=1_100_000, sha256="", start=0, stop=1_100_000),),
        val=(Part(path="b", size_bytes=0, n_tokens=82_400, sha256="", start=0, stop=82_400),),
    )
    pieces = ("The", " assert", " statement", "\n\n", "Assert", "ions", " are", " a", " way", " to", " check", ".\n")
    return DataView(
        data=PreparedData.from_meta(folder, meta), previews=(Preview("", (), pieces), Preview("", (), pieces[4:]))
    )


def test_help(tmp_path: Path, snap_compare: Compare) -> None:
    async def ask(pilot: Pilot[int]) -> None:
        await live_is_filled(pilot)
        await pilot.press("question_mark")
        await pilot.pause(0.1)

    app = make_app(tmp_path / "runs", completed_run(tmp_path / "runs"))
    assert snap_compare(app, terminal_size=SMALL, run_before=ask)
