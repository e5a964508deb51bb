"""Presets: TOML files, found by path or by name. The directory is the registry."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

from gpuworkbench import registry
from gpuworkbench.config.loader import Override, build, build_overridden, environment_overrides, merge, twin_table
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import parse_toml, read_config_file
from gpuworkbench.errors import ConfigError

PRESET_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")


class Preset(NamedTuple):
    """A preset as read: `text` verbatim (it is copied into the run), `table` parsed, `config` validated."""

    name: str
    path: Path
    text: bytes
    table: Mapping[str, Any]
    config: RunConfig

    @property
    def has_cpu_twin(self) -> bool:
        """Whether `--cpu-twin` can train it."""
        return bool(self.config.cpu_twin)


def user_preset_dir() -> Path:
    """Where a person's own presets live."""
    return Path(platformdirs.user_config_dir("gpuworkbench")) / "presets"


def checkout_root() -> Path | None:
    """The source checkout this package runs from, or None when it is installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "presets").is_dir() else None


def preset_dirs() -> list[Path]:
    """Directories searched for a preset name, first match wins."""
    checkout = checkout_root()
    shipped = checkout / "presets" if checkout else Path(__file__).resolve().parents[1] / "presets"
    return [user_preset_dir(), shipped]


def iter_preset_paths(directories: Iterable[Path] | None = None) -> Iterator[Path]:
    """Every preset file by name; a user's preset hides a shipped one of the same name."""
    seen: set[str] = set()
    for directory in directories if directories is not None else preset_dirs():
        try:
            entries = sorted(directory.glob("*.toml"))
        except OSError:
            continue
        for path in entries:
            if path.stem not in seen and PRESET_NAME.match(path.stem):
                seen.add(path.stem)
                yield path


def find_preset(name_or_path: str) -> Path:
    """The file of a preset given by path (has a '/' or ends in .toml) or by name. Raises ConfigError."""
    if not name_or_path.strip():
        raise ConfigError("the preset's name is empty", "`gpuworkbench presets` lists the names")
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        try:
            path = Path(name_or_path).expanduser()
        except RuntimeError:
            raise ConfigError(f"{name_or_path}: there is no such user", "give the preset's whole path") from None
        if not os.path.lexists(path):
            close = registry.nearest(path.stem, [known.stem for known in iter_preset_paths()], cutoff=0.7)
            suggestion = f"did you mean the preset {close!r}?" if close else "`gpuworkbench presets` lists the names"
            raise ConfigError(f"{name_or_path}: no such preset file", suggestion)
        return path
    by_name = {path.stem: path for path in iter_preset_paths()}
    if name_or_path in by_name:
        return by_name[name_or_path]
    close = registry.nearest(name_or_path, list(by_name))
    suggestion = f"did you mean {close!r}?" if close else "`gpuworkbench presets` lists the names"
    raise ConfigError(f"no preset is called {name_or_path[:80]!r}", suggestion)


def load_preset(name_or_path: str) -> Preset:
    """Read, parse and validate a preset, its CPU twin too. Raises ConfigError."""
    path = find_preset(name_or_path)
    text = read_config_file(path, follow_symlinks=True)
    name = path.stem
    if not PRESET_NAME.match(name):
        raise ConfigError(f"{path}: {name!r} is no preset name", "use letters, digits, '_', '-' and '.'")
    table = {**parse_toml(text, str(path)), "preset": name}
    config = build(table, str(path))
    if config.cpu_twin:
        build(twin_table(table, str(path)), f"{path} [cpu_twin]")
    return Preset(name, path, text, table, config)


class Request(NamedTuple):
    """A preset's table and what is to be set on top of it; `name` and `where` are for errors. `allows_idle`: a key may
    do nothing by itself."""

    table: Mapping[str, Any]
    overrides: tuple[Override, ...]
    name: str
    where: str
    allows_idle: bool = False

    def build(self) -> RunConfig:
        """The validated config. Raises ConfigError."""
        return build_overridden(self.table, self.overrides, self.name, self.where, allows_idle=self.allows_idle)


def configure(
    preset: Preset,
    *,
    sets: Iterable[Override] = (),
    environ: Mapping[str, str] | None = None,
    cpu_twin: bool = False,
    steps: int | None = None,
) -> RunConfig:
    """The preset with its overrides applied and validated, as `request(...).build()`. Raises ConfigError."""
    return request(preset, sets=sets, environ=environ, cpu_twin=cpu_twin, steps=steps).build()


def request(
    preset: Preset,
    *,
    sets: Iterable[Override] = (),
    environ: Mapping[str, str] | None = None,
    cpu_twin: bool = False,
    steps: int | None = None,
    allows_idle: bool = False,
) -> Request:
    """The preset, or its CPU twin, with overrides on top. Raises ConfigError.

    `steps` is `--steps N`; `environ` defaults to nothing (callers pass os.environ).
    """
    overrides = [*environment_overrides(environ or {}), *sets]
    if steps is not None:
        overrides.append(Override("train.max_steps", steps, "--steps"))
    where = str(preset.path)
    table = twin_table(preset.table, where) if cpu_twin else merge(preset.table, {})
    table.pop("cpu_twin", None)
    name = f"{preset.name} (CPU twin)" if cpu_twin else preset.name
    return Request(table, tuple(overrides), name, where, allows_idle)
