"""From tables of keys to a validated `RunConfig`, with errors that name the file, the key and the fix.

Precedence, later wins: preset < its `cpu_twin` (when asked for) < environment < command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from gpuworkbench import registry
from gpuworkbench.config import validate
from gpuworkbench.config.schema import SCHEMA_VERSION, RunConfig
from gpuworkbench.config.toml_io import parse_value, refuse_nonfinite
from gpuworkbench.errors import ConfigError

ENV_PREFIX = "GPUWORKBENCH__"
Table = dict[str, Any]


class Override(NamedTuple):
    """One `section.key = value` from the command line or the environment; `where` names it in errors."""

    key: str
    value: Any
    where: str


def parse_set(text: str) -> Override:
    """`section.key=value` of a `--set` flag. Raises ConfigError."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text!r}: no '=' in it", "write --set section.key=value")
    return Override(key.strip(), parse_value(value.strip()), "--set")


def environment_overrides(environ: Mapping[str, str]) -> list[Override]:
    """`GPUWORKBENCH__section__key=value` variables, in name order."""
    found = []
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX):
            key = ".".join(name[len(ENV_PREFIX) :].split("__"))
            found.append(Override(key, parse_value(environ[name]), name))
    return found


def known_keys(table: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every `section.key` there is -> its msgspec field. `table` decides the model family."""
    keys: dict[str, Any] = {}
    for section, struct in section_structs(table).items():
        for info in msgspec.structs.fields(struct):
            keys[f"{section}.{info.encode_name}"] = info
        if section == "model":
            keys["model.family"] = None
    return keys


def section_structs(table: Mapping[str, Any] | None = None) -> dict[str, type[msgspec.Struct]]:
    """Section name -> struct. The `model` section's struct depends on `model.family` in `table`."""
    structs: dict[str, type[msgspec.Struct]] = {}
    for info in msgspec.structs.fields(RunConfig):
        if info.name == "model":
            structs["model"] = _model_struct(table)
        elif (struct := _struct_in(info.type)) is not None:
            structs[info.name] = struct
    return structs


def build(table: Mapping[str, Any], where: str) -> RunConfig:
    """Validate a whole table and return the frozen config. Raises ConfigError (file, key, problem, fix)."""
    refuse_nonfinite(table, where)
    version = table.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ConfigError(
            f"{where}: schema_version = {version} is newer than this program's {SCHEMA_VERSION}",
            "update gpuworkbench, or use a preset of this version",
        )
    _refuse_unknown_keys(table, where)
    twin = table.get("cpu_twin", {})
    if isinstance(twin, Mapping):
        _refuse_unknown_keys(
            {**twin, "model": {**_family_of(table), **_as_table(twin.get("model"))}}, where, "cpu_twin."
        )
    try:
        config = msgspec.convert(table, RunConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(*_explain(str(error), where, table)) from None
    for problem in validate.problems(config):
        raise ConfigError(f"{where}: {problem.key}: {problem.what}", problem.fix)
    return config


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
    for override in overrides:
        keys = known_keys(result)
        if override.key not in keys:
            raise ConfigError(f"{override.where}: {override.key!r} is not a key", _suggestion(override.key, keys))
        section, _, name = override.key.partition(".")
        refuse_nonfinite(override.value, override.where, override.key)
        result = merge(result, {section: {name: override.value}})
    return result


def twin_table(table: Mapping[str, Any], where: str) -> Table:
    """The CPU twin of a preset's table. Raises ConfigError when the preset defines none."""
    twin = table.get("cpu_twin")
    if not twin:
        raise ConfigError(f"{where}: has no [cpu_twin] section", "leave --cpu-twin out, or add the section")
    merged = merge(table, twin)
    merged["is_cpu_twin"] = True
    return merge(merged, {"device": {"kind": "cpu"}})


def where_of(overrides: Iterable[Override], key: str, default: str) -> str:
    """Which source last set `key`: its flag or variable, else `default` (the file)."""
    found = default
    for override in overrides:
        if override.key == key:
            found = override.where
    return found


def _as_table(value: Any) -> Table:
    return dict(value) if isinstance(value, Mapping) else {}


def _family_of(table: Mapping[str, Any]) -> Table:
    family = _as_table(table.get("model")).get("family")
    return {} if family is None else {"family": family}


def _model_struct(table: Mapping[str, Any] | None) -> type[msgspec.Struct]:
    family = _family_of(table or {}).get("family", "gpt2")
    entry = registry.lookup(registry.MODELS, str(family), "model.family")
    struct: type[msgspec.Struct] = registry.load(entry.spec)
    return struct


def _struct_in(annotation: Any) -> type[msgspec.Struct] | None:
    """The Struct in `Struct` or `Struct | None`."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _refuse_unknown_keys(table: Mapping[str, Any], where: str, prefix: str = "") -> None:
    keys = known_keys(table)
    structs = section_structs(table)
    top_level = [info.name for info in msgspec.structs.fields(RunConfig)]
    for section, values in table.items():
        if section not in top_level:
            raise ConfigError(f"{where}: {prefix}{section!r} is not a section", _suggestion(section, top_level))
        if section not in structs:
            continue
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: {prefix}{section} is not a section of keys", f"write [{prefix}{section}]")
        for name in values:
            if f"{section}.{name}" not in keys:
                hint = _suggestion(f"{section}.{name}", keys)
                raise ConfigError(f"{where}: {prefix}{section}.{name} is not a key", hint)


def _suggestion(name: str, known: Mapping[str, Any] | list[str]) -> str:
    close = registry.nearest(name, known)
    if close is None and "." in name:
        leaf = name.rpartition(".")[2]
        close = next((key for key in known if key.rpartition(".")[2] == leaf), None)
    return f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(known)[:24])}"


_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")


def _explain(text: str, where: str, table: Mapping[str, Any]) -> tuple[str, str]:
    """msgspec's message as (what, fix) in the words of a config file."""
    found = _AT.search(text)
    key = found["path"] if found else ""
    what = text[: found.start()] if found else text
    what = what.replace("`", "").replace("Expected", "expected").replace("Object missing required field", "missing")
    what = what.replace("got str", "got text")
    if missing := re.search(r"missing (\w+)", what):
        key, what = f"{key}.{missing[1]}".lstrip("."), "is missing"
    info = known_keys(table).get(key)
    documentation = _documentation(info.type) if info is not None else ""
    hint = f"{key} is: {documentation}" if documentation else "correct the value"
    return f"{where}: {key or 'the file'}: {what}", hint


def _documentation(annotation: Any) -> str:
    """The documentation line of a field's type."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        for meta in getattr(candidate, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.description:
                return meta.description
    return ""


def documentation_of(key: str, table: Mapping[str, Any] | None = None) -> str:
    """One line of documentation for `section.key`."""
    info = known_keys(table).get(key)
    return _documentation(info.type) if info is not None else ""
