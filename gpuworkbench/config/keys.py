"""What keys there are: their fields, documentation and what each expects, and the nearest one to a misspelt name."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec

from gpuworkbench import registry
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError

DEFAULT_FAMILY = "gpt2"
_TYPE_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Key(NamedTuple):
    """One `section.key`: what it does, what may stand there."""

    name: str
    annotation: Any
    default: Any

    @property
    def documentation(self) -> str:
        """One line: what the key does."""
        return next((meta.description for meta in _metas(self.annotation) if meta.description), "")

    @property
    def value_type(self) -> type | None:
        """bool, int, float or str; None where the key is no plain value."""
        choices = self.choices
        found = [type(choices[0])] if choices else [part for part in _parts(self.annotation) if isinstance(part, type)]
        return next((part for part in found if part in _TYPE_WORDS), None)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a key that takes one of a few; else empty."""
        return next((get_args(part) for part in _parts(self.annotation) if get_origin(part) is Literal), ())

    @property
    def expects(self) -> str:
        """What may stand there, in words: `a whole number >= 1`, `one of auto, cuda, cpu`."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        words = _TYPE_WORDS.get(self.value_type or object, "a section of keys")
        return " ".join([words, *(limit for meta in _metas(self.annotation) for limit in _limits(meta))])


def sections(table: Mapping[str, Any] | None = None) -> dict[str, type[msgspec.Struct]]:
    """Section name -> struct, in the order of the schema. `model.family` in `table` decides the model section's."""
    structs: dict[str, type[msgspec.Struct]] = {}
    for info in msgspec.structs.fields(RunConfig):
        if info.name == "model":
            structs["model"] = model_struct(table)
            continue
        for part in _parts(info.type):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                structs[info.name] = part
    return structs


def known_keys(table: Mapping[str, Any] | None = None) -> dict[str, Key]:
    """Every `section.key` there is. `model.family` in `table` decides the model section's."""
    return dict(_keys_of(tuple(sections(table).items())))


@cache
def _keys_of(structs: tuple[tuple[str, type[msgspec.Struct]], ...]) -> Mapping[str, Key]:
    """The keys of these sections: the same for each model family, and asked for with every key that is typed."""
    keys: dict[str, Key] = {}
    for section, struct in structs:
        if section == "model":
            families: Any = Literal[tuple(registry.MODELS)]
            described: Any = Annotated[families, msgspec.Meta(description="the model family")]
            keys["model.family"] = Key("model.family", described, DEFAULT_FAMILY)
        for info in msgspec.structs.fields(struct):
            name = f"{section}.{info.encode_name}"
            keys[name] = Key(name, info.type, info.default)
    return keys


def top_level_keys() -> dict[str, Key]:
    """What stands outside of every section: schema_version, description and what the launcher stores."""
    fields = {info.name: Key(info.name, info.type, info.default) for info in msgspec.structs.fields(RunConfig)}
    return {name: key for name, key in fields.items() if key.value_type is not None}


def model_struct(table: Mapping[str, Any] | None) -> type[msgspec.Struct]:
    """The struct of the model section. Raises ConfigError for an unknown `model.family`."""
    model = (table or {}).get("model")
    family = model.get("family", DEFAULT_FAMILY) if isinstance(model, Mapping) else DEFAULT_FAMILY
    if not isinstance(family, str):
        raise ConfigError("model.family is not text", f"choices: {', '.join(sorted(registry.MODELS))}")
    struct: type[msgspec.Struct] = registry.load(registry.lookup(registry.MODELS, family, "model.family").spec)
    return struct


def suggest(name: str, keys: Mapping[str, Key]) -> str:
    """What to do about a `section.key` that does not exist: the nearest one, or what there is."""
    section, _, leaf = name.rpartition(".")
    siblings = {key.partition(".")[2]: key for key in keys if key.startswith(f"{section}.")}
    namesakes = [key for key in keys if key.endswith(f".{leaf}")]
    if siblings:
        close = registry.nearest(leaf, siblings, cutoff=0.6)
        found = siblings[close] if close else next(iter(namesakes), None)
        return f"did you mean {found!r}?" if found else f"keys of {section}: {', '.join(siblings)}"
    known = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    if name in known:
        return f"write {name}.<key>, such as {next(key for key in keys if key.startswith(f'{name}.'))}"
    found = registry.nearest(name, keys, cutoff=0.8) or next(iter(namesakes), None)
    return f"did you mean {found!r}?" if found else suggest_section(section or leaf, known)


def suggest_section(name: str, known: list[str]) -> str:
    """What to do about a section that does not exist."""
    close = registry.nearest(name, known)
    return f"did you mean {close!r}?" if close else f"sections: {', '.join(known)}"


def _parts(annotation: Any) -> Iterator[Any]:
    """The alternatives of a field's type, without `Annotated` around them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation


def _metas(annotation: Any) -> Iterator[msgspec.Meta]:
    """Every `Meta` on a field's type or one of its alternatives."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from (meta for meta in annotation.__metadata__ if isinstance(meta, msgspec.Meta))
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _metas(part)


def _limits(meta: msgspec.Meta) -> Iterator[str]:
    """The limits of a `Meta` in words."""
    if meta.ge is not None and meta.le is not None:
        yield f"from {meta.ge} to {meta.le}"
    else:
        signs = ((">=", meta.ge), (">", meta.gt), ("<=", meta.le), ("<", meta.lt))
        bounds = [f"{sign} {limit:g}" for sign, limit in signs if limit is not None]
        if bounds:
            yield " and ".join(bounds)
    if meta.max_length is not None:
        yield f"of at most {meta.max_length} characters"
    if meta.pattern:
        yield f"of the form {meta.pattern}"
