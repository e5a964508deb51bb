"""Saving a preset of one's own: a complete file in the user's directory, read back before it is there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from gpuworkbench.config.loader import Override, apply_overrides, build, merge, twin_table
from gpuworkbench.config.presets import PRESET_NAME, Preset, iter_preset_paths, user_preset_dir
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import MAX_CONFIG_BYTES, dump_toml, parse_toml
from gpuworkbench.errors import ConfigError
from gpuworkbench.io import REAL_FILES, Files, atomic_write_bytes, make_directories


def check_preset_name(name: str) -> str:
    """Return `name` where a preset can be called so. Raises ConfigError."""
    if not PRESET_NAME.match(name):
        raise ConfigError(
            f"{name[:80]!r} is no preset name",
            "use up to 64 letters, digits, '_', '-' and '.', a letter or a digit first",
        )
    if name.lower().endswith(".toml"):
        raise ConfigError(f"{name!r} reads as a file", "leave .toml out")
    return name


def hidden_by(name: str) -> str:
    """What saving under `name` would replace or hide, in words; empty where nothing."""
    if os.path.lexists(user_preset_dir() / f"{name}.toml"):
        return f"your preset {name} is replaced"
    if any(path.stem == name for path in iter_preset_paths()):
        return f"the preset {name} that came with the program is hidden by yours"
    return ""


def own_preset(
    preset: Preset, changes: Iterable[Override], twin_changes: Iterable[Override], description: str | None = None
) -> bytes:
    """The text of a whole preset: `preset` with these changes, its card and its CPU twin with theirs.

    Raises ConfigError where that is not valid, or cannot be written as a preset.
    """
    table, twin = apply_overrides(preset.table, changes), dict(preset.table.get("cpu_twin", {}))
    twin_changes = list(twin_changes)
    changed = apply_overrides(twin_table(preset.table, preset.name), twin_changes) if twin_changes else {}
    for section, _, leaf in (change.key.partition(".") for change in twin_changes):
        twin = merge(twin, {section: {leaf: changed[section][leaf]}})
    wanted = {key: value for key, value in table.items() if key not in ("preset", "cpu_twin")}
    if description is not None:
        wanted["description"] = description
    if twin:
        wanted["cpu_twin"] = twin
    text = dump_toml(wanted)
    where = "the new preset"
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{where} is longer than {MAX_CONFIG_BYTES} bytes", "shorten its texts")
    read = parse_toml(text, where)
    _require_same(build(read, where), build(wanted, where))
    if twin:
        _require_same(build(twin_table(read, where), where), build(twin_table(wanted, where), where))
    return text


def own_preset_path(name: str, *, overwrite: bool = False, instead: str = "choose another name") -> Path:
    """Where a preset of that name goes. Raises ConfigError where it cannot be one, or is there (no `overwrite`).

    `instead` is what to do about a taken name.
    """
    path = user_preset_dir() / f"{check_preset_name(name)}.toml"
    if not overwrite and os.path.lexists(path):
        raise ConfigError(f"you have a preset {name} already", instead)
    return path


def save_own_preset(name: str, text: bytes, *, overwrite: bool = False, files: Files = REAL_FILES) -> Path:
    """Put a preset's text into the user's directory, whole or not at all; returns where.

    Raises ConfigError as `own_preset_path`, and for a place that cannot be written.
    """
    path = own_preset_path(name, overwrite=overwrite)
    try:
        make_directories(path.parent, files)
        atomic_write_bytes(path, text, files)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}", "check that folder") from None
    return path


def _require_same(written: RunConfig, wanted: RunConfig) -> None:
    """ConfigError where TOML could not say what is wanted: a key that its CPU twin should leave empty."""
    if msgspec.to_builtins(written) != msgspec.to_builtins(wanted):
        raise ConfigError(
            "a key that the preset sets cannot be left empty in its CPU twin", "give it a value there, or clear both"
        )
