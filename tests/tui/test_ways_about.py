"""Getting about: palette, double clicks, escape pressed twice, what the trainer printed, the index a reader leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuworkbench.events.index import cached_index_path, load_index
from gpuworkbench.state import live_log
from gpuworkbench.tui.screens.help import HelpScreen
from gpuworkbench.tui.screens.home import Home
from gpuworkbench.tui.screens.live import Live
from gpuworkbench.tui.widgets.run_table import RunTable
from tests.fixtures.recorded_run import completed_run, crashed_run
from tests.tui.helpers import RICH, SMALL, home_is_filled, live_is_filled, make_app, screen_text, until
from tests.tui.test_runs_screen import runs_are_listed


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


async def test_the_palette_has_keys_presets_and_runs(tmp_path: Path) -> None:
    paths = completed_run(tmp_path / "runs")
    app = make_app(tmp_path / "runs")
    async with app.run_test(size=RICH) as pilot:
        home = await home_is_filled(pilot)
        home.query_one(RunTable).focus()
        await pilot.pause()
        commands = {command.title: command for command in app.get_system_commands(home)}
        assert {"Filter", "Runs", "Mark", "Del", "Help", "Quit", "Sample", "Doctor"} <= commands.keys()
        assert {"Preset quickstart", "Preset rtx5080_1b", f"Run {paths.run_id}", "Theme"} <= commands.keys()
        commands["Mark"].callback()
        await until(pilot, app.services.marks.numbers, "mark")
        commands[f"Run {paths.run_id}"].callback()
        live = await live_is_filled(pilot)
        assert live.paths.run_id == paths.run_id
        keys = {command.title for command in app.get_system_commands(live)}
        assert {"Export", "Output", "Axis", "Zoom in", "Loss alone, and back"} <= keys


async def test_a_second_escape_leaves_no_second_screen(tmp_path: Path) -> None:
    completed_run(tmp_path / "runs")
    app = make_app(tmp_path / "runs")
    async with app.run_test(size=SMALL) as pilot:
        await runs_are_listed(pilot)
        for _ in range(4):
            app.simulate_key("escape")  # all of them before the first is seen
        await until(pilot, lambda: isinstance(app.screen, Home), "home")
        await pilot.pause(0.3)
        assert isinstance(app.screen, Home)


async def test_what_the_trainer_printed(tmp_path: Path) -> None:
    app = make_app(tmp_path / "runs", crashed_run(tmp_path / "runs"))
    async with app.run_test(size=RICH) as pilot:
        live = await live_is_filled(pilot)
        await pilot.press("8", "o")
        await until(pilot, lambda: "8 Messages: trainer.log" in screen_text(app), "title")
        assert "Traceback (most recent call last):" in screen_text(app)
        assert "checkpoint checkpoints" not in screen_text(app)
        live.paths.trainer_log.write_text("loading\nand a line more\n")
        await until(pilot, lambda: "and a line more" in screen_text(app), "another line")
        await pilot.press("o")
        await until(pilot, lambda: "checkpoint checkpoints" in screen_text(app), "messages")


async def test_a_double_click_shows_a_panel_alone(tmp_path: Path) -> None:
    app = make_app(tmp_path / "runs", completed_run(tmp_path / "runs"))
    async with app.run_test(size=RICH) as pilot:
        live = await live_is_filled(pilot)
        for expected in (True, False):
            await pilot.click("TrainingPanel", times=2)
            await until(pilot, lambda expected=expected: live.has_class("solo") is expected, "another layout")


async def test_a_long_log_without_an_index_leaves_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_log, "CACHE_AFTER_BYTES", 10_000)
    paths = completed_run(tmp_path / "runs")
    app = make_app(tmp_path / "runs", paths)
    async with app.run_test(size=SMALL) as pilot:
        await live_is_filled(pilot)
        index = cached_index_path(paths.events)
        await until(pilot, index.exists, "index")
        found = load_index(index, paths.events)
        assert found is not None
        assert found[1] == paths.events.stat().st_size
        assert isinstance(app.screen, Live)


async def test_a_dialog_closes_once(tmp_path: Path) -> None:
    app = make_app(tmp_path / "runs", completed_run(tmp_path / "runs"))
    async with app.run_test(size=SMALL) as pilot:
        live = await live_is_filled(pilot)
        await pilot.press("question_mark")
        await until(pilot, lambda: app.screen is not live, "help")
        app.screen.dismiss()
        closed = app.screen_stack[-1]
        assert closed is live
        help_screen = HelpScreen("Keys", [])
        await app.push_screen(help_screen)
        for _ in range(3):
            help_screen.dismiss()  # as by keys that were all read before the first was seen
        await pilot.pause(0.2)
        assert app.screen is live


async def test_a_key_may_be_quicker_than_its_screen(tmp_path: Path) -> None:
    completed_run(tmp_path / "runs")
    app = make_app(tmp_path / "runs")
    async with app.run_test(size=SMALL) as pilot:
        await home_is_filled(pilot)
        app.show_runs()
        await app.run_action("sample")  # nothing of the screen is there yet
        await pilot.pause(0.1)
        assert any("choose a run first" in notice.message for notice in app._notifications)
