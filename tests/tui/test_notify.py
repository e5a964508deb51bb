"""Settings of the app that stay: the theme, and being told of ends, from a key and from the palette."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from gpuworkbench.config.user_settings import SettingsStore, UserSettings
from gpuworkbench.tui import notices
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.services import Services
from gpuworkbench.tui.themes import DEFAULT_THEME
from tests.fixtures.recorded_run import completed_run, crashed_run
from tests.tui.helpers import SMALL, home_is_filled, until


def app_with_settings(root: Path) -> WorkbenchApp:
    return WorkbenchApp(Services(runs_dir=root / "runs", settings=SettingsStore(root / "settings.toml")))


async def stored(pilot: Pilot[int], root: Path, value: UserSettings) -> None:
    await until(pilot, lambda: SettingsStore(root / "settings.toml").value == value, str(value), 10)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(notices, "INTERVAL_S", 0.02)
    for name in ("TMUX", "VTE_VERSION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


async def test_a_theme_is_kept_and_an_unknown_one_is_no_harm(tmp_path: Path) -> None:
    app = app_with_settings(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        await home_is_filled(pilot)
        assert not (tmp_path / "settings.toml").exists(), "nobody chose anything"
        app.theme = "workbench-safe"
        await stored(pilot, tmp_path, UserSettings(theme="workbench-safe"))
    again = app_with_settings(tmp_path)
    assert again.theme == "workbench-safe"
    async with again.run_test(size=SMALL) as pilot:
        again.theme = "nord"
        await stored(pilot, tmp_path, UserSettings(theme="nord"))
        again.theme = "workbench-safe"
        await stored(pilot, tmp_path, UserSettings(theme="workbench-safe"))
    (tmp_path / "settings.toml").write_text('theme = "gone"\n')
    third = app_with_settings(tmp_path)
    async with third.run_test(size=SMALL) as pilot:
        await home_is_filled(pilot)
        assert third.theme == DEFAULT_THEME
    assert (tmp_path / "settings.toml").read_text() == 'theme = "gone"\n'


async def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("notify = 'siren'")
    app = app_with_settings(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        await home_is_filled(pilot)
        assert any("siren" in notification.message for notification in app._notifications)
        await pilot.press("n")
        await until(pilot, lambda: any("not stored" in n.message for n in app._notifications), "words")


async def test_ends_are_told_once_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    held = {completed_run(tmp_path / "runs", "one").root, crashed_run(tmp_path / "runs", "two").root}
    monkeypatch.setattr(WorkbenchApp, "write_to_terminal", lambda self, sequence: written.append(sequence))
    monkeypatch.setattr(notices, "probe_lock", lambda lock: 1 if lock.parent in held else None)
    app = app_with_settings(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        await home_is_filled(pilot)
        assert app._ends is None, "nobody asked for it"
        await pilot.press("n")
        await stored(pilot, tmp_path, UserSettings(notify="bell"))
        assert written == ["\x07"]  # what it is like
        await pilot.pause(0.2)
        held.remove(tmp_path / "runs" / "one")
        await until(pilot, lambda: len(written) == 2, "the bell", 10)
        commands = {command.title: command.callback for command in app.get_system_commands(app.screen)}
        commands["Tell of ends: desktop"]()
        await stored(pilot, tmp_path, UserSettings(notify="desktop"))
        held.clear()
        await until(pilot, lambda: any("two crashed" in text for text in written), "the notification", 10)
        assert written[-1].startswith("\x1b]9;gpuworkbench: two crashed")
        assert any("two crashed" in notification.message for notification in app._notifications)
        count = len(written)
        await pilot.press("n")
        await stored(pilot, tmp_path, UserSettings(notify="off"))
        assert app._ends is None
        assert len(written) == count
