"""From tables of keys to a validated `RunConfig`, with errors that name the file, the key and the fix.

Precedence, later wins: preset < its `cpu_twin` (when asked for) < environment < command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from gpuworkbench.config import keys as schema_keys
from gpuworkbench.config import validate
from gpuworkbench.config.applicable import drop_strays
from gpuworkbench.config.idle_keys import idle_keys
from gpuworkbench.config.schema import SCHEMA_VERSION, RunConfig
from gpuworkbench.config.toml_io import parse_value, refuse_odd_values
from gpuworkbench.errors import ConfigError

ENV_PREFIX = "GPUWORKBENCH__"
CARD_ONLY_KEYS = frozenset({"index", "uuid", "memory_limit_gib"})  # of [device]
Table = dict[str, Any]


class Override(NamedTuple):
    """One `section.key = value` from the command line or the environment; `where` names it in errors.

    `text` is the value as it was written, for keys that take text: `--set sample.prompt=1999` means the word.
    """

    key: str
    value: Any
    where: str
    text: str | None = None


def parse_set(text: str) -> Override:
    """`section.key=value` of a `--set` flag. Raises ConfigError."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text[:80]!r}: no '=' after a key", "write --set section.key=value")
    return _override(key.strip(), value.strip(), "--set")


def environment_overrides(environ: Mapping[str, str]) -> list[Override]:
    """`GPUWORKBENCH__section__key=value` variables, in name order. Raises ConfigError."""
    names = sorted(name for name in environ if name.startswith(ENV_PREFIX))
    return [_override(name[len(ENV_PREFIX) :].replace("__", "."), environ[name], name) for name in names]


def build(table: Mapping[str, Any], where: str, overrides: Sequence[Override] = ()) -> RunConfig:
    """Validate a whole table and return the frozen config. Raises ConfigError (file, key, problem, fix).

    `overrides` are those already in `table`: an error in one of their keys names the flag or variable, not the file.
    """
    refuse_odd_values(table, where)
    version = table.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ConfigError(
            f"{where}: schema_version = {version} is newer than this program's {SCHEMA_VERSION}",
            "update gpuworkbench, or use a preset of this version",
        )
    _refuse_unknown_keys(table, where, [info.name for info in msgspec.structs.fields(RunConfig)])
    twin = table.get("cpu_twin")
    if isinstance(twin, Mapping):
        _refuse_unknown_keys(twin, where, list(schema_keys.sections(table)), "cpu_twin.")
    try:
        config = msgspec.convert(table, RunConfig)
    except msgspec.ValidationError as error:
        raise _explained(str(error), table, where, overrides) from None
    for problem in validate.problems(config):
        raise ConfigError(f"{where_of(overrides, problem.key, where)}: {problem.key}: {problem.what}", problem.fix)
    return config


def build_overridden(
    table: Mapping[str, Any], overrides: Sequence[Override], name: str, where: str, *, allows_idle: bool = False
) -> RunConfig:
    """`table` with `overrides` applied, validated. Errors name the override; `where` is the file behind `table`.

    An override that does nothing is refused unless `allows_idle`.
    """
    if not overrides:
        return build(table, where)
    named = list(dict.fromkeys(f"{override.where} {override.key}" for override in overrides))
    few = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
    config = build(apply_overrides(table, overrides), f"{name} with {few}", overrides)
    if not allows_idle:
        refuse_idle(config, table, overrides)
    return config


def refuse_idle(config: RunConfig, table: Mapping[str, Any], overrides: Sequence[Override]) -> None:
    """ConfigError where one of the `overrides` that made `config` of `table` does nothing."""
    for key, idle in idle_keys(config, table, [override.key for override in overrides]):
        raise ConfigError(f"{where_of(overrides, key, 'the run')}: {key}: has no effect: {idle.why}", idle.fix)


def merge(base: Mapping[str, Any], sections: Mapping[str, Any]) -> Table:
    """`base` with each section's keys replaced by those of `sections`; neither argument is changed."""
    merged: Table = {key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()}
    for section, values in sections.items():
        if isinstance(values, Mapping) and isinstance(merged.get(section, {}), Mapping):
            merged[section] = {**merged.get(section, {}), **values}
        else:
            merged[section] = values
    return merged


def apply_overrides(table: Mapping[str, Any], overrides: Iterable[Override]) -> Table:
    """`table` with each override applied in turn. Raises ConfigError for a key that does not exist."""
    result = merge(table, {})
    chosen: set[str] = set()
    for override in overrides:
        known = schema_keys.known_keys(result)
        key = known.get(override.key)
        if key is None:
            raise ConfigError(
                f"{override.where}: {override.key!r} is not a key", schema_keys.suggest(override.key, known)
            )
        value = override.value
        if key.value_type is str and not isinstance(value, str) and override.text is not None:
            value = override.text
        refuse_odd_values(value, override.where, override.key)
        section, _, name = override.key.partition(".")
        result = merge(result, {section: {name: value}})
        chosen.add(override.key)
    return drop_strays(result, chosen)


def twin_table(table: Mapping[str, Any], where: str) -> Table:
    """The CPU twin of a preset's table. Raises ConfigError when the preset defines none.

    What only a card has (its index, a memory limit) does not carry over.
    """
    twin = table.get("cpu_twin")
    if not twin:
        raise ConfigError(f"{where}: has no [cpu_twin] section", "leave --cpu-twin out, or add the section")
    chosen = {f"{section}.{key}" for section, values in twin.items() if isinstance(values, Mapping) for key in values}
    merged = drop_strays(merge(table, twin), chosen)
    merged.pop("cpu_twin")
    merged["is_cpu_twin"] = True
    device = table.get("device", {})
    kept = {name: value for name, value in device.items() if name not in CARD_ONLY_KEYS}
    merged["device"] = {**kept, "kind": "cpu", **twin.get("device", {})}
    return merged


def where_of(overrides: Iterable[Override], key: str, default: str) -> str:
    """Which source last set `key`: its flag or variable, else `default` (the file)."""
    return next((override.where for override in reversed(list(overrides)) if override.key == key), default)


def _override(key: str, text: str, where: str) -> Override:
    try:
        f"{key}{text}".encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{where} {key[:80]!r} is not UTF-8", "give it as UTF-8 text") from None
    return Override(key, parse_value(text), where, text)


def _refuse_unknown_keys(table: Mapping[str, Any], where: str, top_level: list[str], prefix: str = "") -> None:
    try:
        structs, known = schema_keys.sections(table), schema_keys.known_keys(table)
    except ConfigError as error:
        raise ConfigError(f"{where}: {prefix}{error.message}", error.hint) from None
    for section, values in table.items():
        if section not in top_level:
            hint = schema_keys.suggest_section(section, top_level)
            raise ConfigError(f"{where}: {prefix}{section} is not a section", hint)
        if section not in structs:
            continue
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: {prefix}{section} is not a section of keys", f"write [{prefix}{section}]")
        for name in values:
            if f"{section}.{name}" not in known:
                hint = schema_keys.suggest(f"{section}.{name}", known)
                raise ConfigError(f"{where}: {prefix}{section}.{name} is not a key", hint)


_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"missing required field `(?P<name>\w+)`")


def _explained(text: str, table: Mapping[str, Any], where: str, overrides: Sequence[Override]) -> ConfigError:
    """msgspec's message in the words of a config file: the key, its value, what is expected, what the key does."""
    found = _AT.search(text)
    path = found["path"] if found else ""
    known = {**schema_keys.known_keys(table), **schema_keys.top_level_keys()}
    if missing := _MISSING.search(text):
        path = f"{path}.{missing['name']}".lstrip(".")
        what = f"{path} is missing"
    elif path in known:
        section, _, name = path.rpartition(".")
        value = (table[section] if section else table)[name]
        what = f"{path} = {_shown(value)} is not {known[path].expects}"
    else:
        what = f"{path or 'the file'}: {text[: found.start()] if found else text}".replace("`", "")
    hint = f"{path} is: {known[path].documentation}" if path in known else f"write [{path or 'section'}] with keys"
    return ConfigError(f"{where_of(overrides, path, where)}: {what}", hint)


def _shown(value: Any) -> str:
    shown = repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
    return {"True": "true", "False": "false"}.get(shown, shown if len(shown) <= 60 else shown[:59] + "…")
