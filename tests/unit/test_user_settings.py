"""The app's settings file: kept over restarts, whole or not at all, and never lost where it is not understood."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from gpuworkbench.config.user_settings import SettingsStore, UserSettings
from gpuworkbench.errors import ConfigError
from tests.fixtures.faulty_files import FaultyFiles


def test_what_was_set_is_there_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "settings.toml"
    store = SettingsStore(path)
    assert store.value == UserSettings()
    store.set(notify="bell")
    store.set(theme="nord", notify="desktop")
    assert not path.exists()
    store.store()
    assert SettingsStore(path).value == UserSettings(theme="nord", notify="desktop")


def test_nothing_is_written_where_nothing_was_set_or_without_a_path(tmp_path: Path) -> None:
    SettingsStore(tmp_path / "settings.toml").store()
    store = SettingsStore()
    store.set(theme="nord")
    store.store()
    assert store.value.theme == "nord"
    assert not list(tmp_path.iterdir())


def test_what_others_put_there_is_kept_also_behind_a_link(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text('theme = "nord"\nfuture = {x = 1}\n')
    link = tmp_path / "settings.toml"
    link.symlink_to(real)
    store = SettingsStore(link)
    store.set(notify="bell")
    store.store()
    assert link.is_symlink()
    assert tomllib.loads(real.read_text()) == {"theme": "nord", "future": {"x": 1}, "notify": "bell"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"theme = ", "not valid TOML"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"notify = 'siren'", "Invalid enum value 'siren' - at `$.notify`; mend that line"),
        (b"theme = 3", "Expected `str`, got `int`"),
    ],
)
def test_a_file_that_is_not_understood_is_said_and_left_alone(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(text)
    store = SettingsStore(path)
    assert said in store.problem
    assert "\n" not in store.problem
    assert store.value == UserSettings()
    store.set(theme="nord")
    with pytest.raises(ConfigError, match="the settings are not stored"):
        store.store()
    assert path.read_bytes() == text
    assert store.value.theme == "nord"


def test_a_directory_or_a_fifo_in_its_place_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "b")
    for name in "ab":
        assert "cannot be read" in SettingsStore(tmp_path / name).problem


def test_a_disk_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('theme = "nord"\n')
    store = SettingsStore(path)
    store.set(theme="dracula")
    with pytest.raises(ConfigError, match="cannot be written"):
        store.store(FaultyFiles(kind="fsync", fail_at=1))
    assert path.read_text() == 'theme = "nord"\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["settings.toml"]
