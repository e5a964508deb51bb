"""What a person sets once for the app: the theme, and how to be told that a run ended. A TOML file of their own."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import platformdirs

from gpuworkbench.config.toml_io import dump_toml, parse_toml, read_config_file
from gpuworkbench.errors import ConfigError
from gpuworkbench.io import REAL_FILES, Files, atomic_write_bytes, make_directories

NotifyBy = Literal["off", "bell", "desktop"]
NOTIFY_BY: tuple[NotifyBy, ...] = get_args(NotifyBy)


class UserSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`theme` "" is the app's own; `notify` is how the end or failure of a run is told."""

    theme: str = ""
    notify: NotifyBy = "off"


class SettingsStore:
    """The settings of one app: read once, kept in memory, written when changed.

    Without a path nothing is written. A file that cannot be understood is left as it is and said (`problem`); what
    somebody else put into it is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._table: dict[str, Any] = {}
        self._changed: dict[str, str] = {}
        self._lock = threading.Lock()
        self.problem = ""
        self.value = UserSettings()
        if path is None or not os.path.lexists(path):
            return
        try:
            self._table = parse_toml(read_config_file(path, follow_symlinks=True), str(path))
            self.value = msgspec.convert(self._table, UserSettings)
        except ConfigError as error:
            self.problem = error.line()
        except msgspec.ValidationError as error:
            self.problem = f"{path}: {error}; mend that line"

    def set(self, **changes: str) -> None:
        """Change some in memory; `store` writes them."""
        self.value = msgspec.structs.replace(self.value, **changes)
        self._changed.update(changes)

    def store(self, files: Files = REAL_FILES) -> None:
        """Write what was set. Raises ConfigError where that is not possible. Safe to be called from any thread."""
        if self._path is None or not self._changed:
            return
        if self.problem:
            raise ConfigError(f"the settings are not stored: {self.problem}")
        path = Path(os.path.realpath(self._path))  # a link to somebody's dotfiles stays one
        with self._lock:
            try:
                make_directories(path.parent, files)
                atomic_write_bytes(path, dump_toml({**self._table, **self._changed}), files)
            except OSError as error:
                raise ConfigError(f"{path} cannot be written: {error.strerror or error}", "check that folder") from None


def user_settings_path() -> Path:
    """Where they are kept."""
    return Path(platformdirs.user_config_dir("gpuworkbench")) / "settings.toml"
