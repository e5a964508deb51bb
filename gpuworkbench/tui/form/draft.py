"""A draft: a preset and what a person changed in it, checked by the loader that creates the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gpuworkbench.config.loader import (
    Override,
    apply_overrides,
    build,
    environment_overrides,
    merge,
    refuse_idle,
    twin_table,
)
from gpuworkbench.config.presets import Preset, iter_preset_paths
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError
from gpuworkbench.tui.form.fields import WHERE, FormField, form_fields, override, text_of

_KEY = re.compile(r"[a-z_]+\.[a-z0-9_]+")


@dataclass(frozen=True)
class Draft:
    """Changes by key, as typed; those of the CPU twin are kept apart, since it has values of its own."""

    preset: Preset
    is_twin: bool = False
    is_queued: bool = False
    changes: Mapping[str, str] = field(default_factory=dict)
    twin_changes: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As people see it."""
        return f"{self.preset.name} (CPU twin)" if self.is_twin else self.preset.name

    @property
    def argument(self) -> str:
        """What names the preset: its name where that finds this file, else the path."""
        paths = {path.stem: path for path in iter_preset_paths()}
        path = self.preset.path
        return self.preset.name if paths.get(self.preset.name) == path else str(path.absolute())

    @property
    def current(self) -> Mapping[str, str]:
        """The changes of what would be started."""
        return self.twin_changes if self.is_twin else self.changes

    def changed(self, key: str, text: str | None) -> Draft:
        """The draft with another text for a key; None takes the change back."""
        texts = {name: value for name, value in self.current.items() if name != key}
        if text is not None:
            texts[key] = text
        return replace(self, twin_changes=texts) if self.is_twin else replace(self, changes=texts)


@dataclass(frozen=True)
class Checked:
    """What a draft amounts to. With errors, `config` is what is left without the changes that are wrong."""

    fields: tuple[FormField, ...]
    base: RunConfig | None  # the preset as it is here, before the changes
    base_texts: Mapping[str, str]
    config: RunConfig | None
    overrides: tuple[Override, ...]
    errors: Mapping[str, str]  # key -> line; "" for what no key is to blame for

    @property
    def is_valid(self) -> bool:
        """Whether a run can be made of it."""
        return self.config is not None and not self.errors

    def is_changed(self, key: str) -> bool:
        """Whether a key has another value than the preset gives it."""
        return any(change.key == key for change in self.overrides)


def check(draft: Draft, environ: Mapping[str, str]) -> Checked:
    """Build the configuration through the loader, blaming each error on its key. Never raises ConfigError.

    A wrong value is put aside and the rest is built again, so that every wrong field is told, not only the first.
    """
    try:
        given = environment_overrides(environ)
        table = apply_overrides(plain_table(draft), given)
        base = build(table, draft.preset.name, given)
    except ConfigError as error:
        return Checked((), None, {}, None, (), {"": error.line()})
    known = {item.name: item for item in form_fields(_with(table, draft, "model.family"))}
    base_texts = {name: text_of(value_at(table, item)) for name, item in known.items()}
    kept = {
        name: change
        for name, text in draft.current.items()
        if name in known and not _is_same(change := override(known[name], text), value_at(table, known[name]))
    }
    every = tuple(kept.values())
    errors: dict[str, str] = {}
    config: RunConfig | None = None
    while config is None:
        try:
            changes = list(kept.values())
            made = build(apply_overrides(table, changes), WHERE, changes)
            refuse_idle(made, table, changes)
            config = made
        except ConfigError as error:
            key = blamed_key(error.message, known)
            errors.setdefault(key, error.line().removeprefix(f"{WHERE}: "))
            if kept.pop(key, None) is None:
                break
    return Checked(tuple(known.values()), base, base_texts, config, every, errors)


def plain_table(draft: Draft) -> dict[str, Any]:
    """The preset's keys, those of its CPU twin where the draft is one. Raises ConfigError where there is none."""
    preset = draft.preset
    table = twin_table(preset.table, str(preset.path)) if draft.is_twin else merge(preset.table, {})
    table.pop("cpu_twin", None)
    return table


def saved_overrides(draft: Draft) -> tuple[list[Override], list[Override]]:
    """The changes of the preset and of its twin that are to be saved."""
    both = []
    for is_twin in (False, True):
        half = replace(draft, is_twin=is_twin)
        usable = half.current and (not is_twin or draft.preset.has_cpu_twin)
        both.append(list(check(half, {}).overrides) if usable else [])
    return both[0], both[1]


def blamed_key(line: str, known: Mapping[str, object]) -> str:
    """The key that an error speaks of: the first one it names; "" where it names none."""
    return next((name for name in _KEY.findall(line) if name in known), "")


def value_at(table: Mapping[str, Any], item: FormField) -> Any:
    """A key's value in a table, its default where it is missing."""
    section, _, leaf = item.name.partition(".")
    values = table.get(section, {})
    return values.get(leaf, item.key.default) if isinstance(values, Mapping) else item.key.default


def _with(table: Mapping[str, Any], draft: Draft, key: str) -> Mapping[str, Any]:
    """The table with one change of the draft, which decides what other keys there are."""
    text = draft.current.get(key)
    section, _, leaf = key.partition(".")
    return table if text is None else merge(table, {section: {leaf: text}})


def _is_same(change: Override, value: Any) -> bool:
    if isinstance(value, str):
        return change.value == value or (not isinstance(change.value, str) and change.text == value)
    return bool(change.value == value) and isinstance(change.value, bool) == isinstance(value, bool)
