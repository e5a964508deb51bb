"""A preset with some keys changed, written as a preset of the user's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpuworkbench.config.loader import Override, apply_overrides, build, merge, twin_table
from gpuworkbench.config.presets import PRESET_NAME, Preset, user_preset_dir
from gpuworkbench.config.toml_io import dump_toml, parse_toml
from gpuworkbench.errors import ConfigError
from gpuworkbench.io import atomic_write_bytes, make_directories


def refuse_taken_name(name: str, *, overwrite: bool) -> Path:
    """Where a preset of that name goes. Raises ConfigError where it cannot be one, or is there (no `overwrite`)."""
    if not PRESET_NAME.match(name) or name.endswith(".toml"):
        raise ConfigError(f"{name[:80]!r} is no preset name", "use letters, digits, '_', '-' and '.', without .toml")
    path = user_preset_dir() / f"{name}.toml"
    if not overwrite and os.path.lexists(path):
        raise ConfigError(f"{path} is there already", "choose another name, or replace it with --force")
    return path


def save_tuned_preset(
    name: str, preset: Preset, changes: Sequence[Override], description: str, *, is_twin: bool, overwrite: bool
) -> Path:
    """Write `preset` with `changes` and this description; returns where. Where `is_twin`, they are its CPU twin's.

    The text is read back and validated before it is there. Raises ConfigError.
    """
    path = refuse_taken_name(name, overwrite=overwrite)
    table = {key: value for key, value in preset.table.items() if key != "preset"}
    twin: dict[str, Any] = dict(table.pop("cpu_twin", {}))
    if is_twin:
        changed = apply_overrides(twin_table(preset.table, str(preset.path)), changes)
        for change in changes:
            section, _, leaf = change.key.partition(".")
            twin = merge(twin, {section: {leaf: changed[section][leaf]}})
    else:
        table = apply_overrides(table, changes)
    table["description"] = description
    if twin:
        table["cpu_twin"] = twin
    text = dump_toml(table)
    written = parse_toml(text, name)
    build(written, name)
    if twin:
        build(twin_table(written, name), name)
    try:
        make_directories(path.parent)
        atomic_write_bytes(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}", "check that folder") from None
    return path
