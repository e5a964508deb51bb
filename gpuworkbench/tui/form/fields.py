"""The fields of the launch form, made from the schema: one a key, with the editor that suits its type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from gpuworkbench import registry
from gpuworkbench.config.fields import doc
from gpuworkbench.config.keys import Key, known_keys
from gpuworkbench.config.loader import Override
from gpuworkbench.config.toml_io import parse_value
from gpuworkbench.text import safe_text

RUN_SECTION = "run"
TWIN_KEY, QUEUE_KEY = "run.cpu_twin", "run.queue"  # of the form itself, not of a config
FIRST_KEYS = ("train.max_steps",)  # shown in the first section, since nearly everybody changes them
HIDDEN_SECTIONS = frozenset({"card"})  # what a preset is for, not what a run does
HIDDEN_KEYS = frozenset(
    {"data.sha256", "data.tokenizer_sha256", "train.init_sha256", "device.uuid"}
)  # stored by the launcher
WHERE = "form"  # how errors name the source of a value
# Keys whose values are the names of a table.
TABLES: Mapping[str, Mapping[str, Any]] = {
    "model.family": registry.MODELS,
    "optimizer.name": registry.OPTIMIZERS,
    "schedule.name": registry.SCHEDULES,
}

Editor = Literal["switch", "choice", "text"]
_YES_NO = {True: "true", False: "false"}


@dataclass(frozen=True)
class FormField:
    """One key of the form."""

    section: str
    key: Key
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`section.key`."""
        return self.key.name

    @property
    def label(self) -> str:
        """The name within its section; whole where it stands in another."""
        section, _, leaf = self.name.partition(".")
        return leaf if section == self.section else self.name

    @property
    def editor(self) -> Editor:
        """A switch for yes and no, a list for a few choices, else a line of text."""
        if self.key.value_type is bool:
            return "switch"
        return "choice" if self.choices else "text"

    @property
    def is_optional(self) -> bool:
        """Whether it may be left empty: it is then chosen when the run is created."""
        return self.key.default is None

    @property
    def expects(self) -> str:
        """What may stand there, in words, and what stands there by default."""
        words = f"one of {', '.join(self.choices)}" if self.choices else self.key.expects
        default = self.key.default
        if default is None:
            return f"{words}, or empty"
        return words if default is msgspec.NODEFAULT else f"{words}; default {text_of(default) or 'empty'}"


def form_fields(table: Mapping[str, Any]) -> list[FormField]:
    """Every key a person may set, by section; `model.family` in `table` decides the model's keys.

    Raises ConfigError for an unknown family.
    """
    keys = {
        name: key
        for name, key in known_keys(table).items()
        if key.value_type is not None and name not in HIDDEN_KEYS and name.partition(".")[0] not in HIDDEN_SECTIONS
    }
    first = [_field(RUN_SECTION, keys.pop(name)) for name in FIRST_KEYS if name in keys]
    return [*first, *_of_the_form(), *(_field(name.partition(".")[0], key) for name, key in keys.items())]


def _field(section: str, key: Key) -> FormField:
    table = TABLES.get(key.name)
    return FormField(section, key, tuple(sorted(table)) if table is not None else key.choices)


def _of_the_form() -> list[FormField]:
    twin = Annotated[bool, doc("train the preset's small stand-in on the CPU; it has values of its own")]
    queue = Annotated[bool, doc("start once the runs before it have left its card (or this host's CPU)")]
    return [FormField(RUN_SECTION, Key(name, kind, False)) for name, kind in ((TWIN_KEY, twin), (QUEUE_KEY, queue))]


def text_of(value: Any) -> str:
    """A value as it is edited: what `override` turns into the same value. Safe to show; None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return _YES_NO[value]
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if not isinstance(value, str):
        return str(value)
    is_plain = value == value.strip() and safe_text(value) == value and not value.startswith(('"', "'"))
    return value if is_plain and value else quoted(value)


def quoted(text: str) -> str:
    """Text as a TOML string on one line, with everything escaped that a terminal should not get."""
    return '"' + "".join(_escaped(char) for char in text) + '"'


def override(field: FormField, text: str) -> Override:
    """The change that `text` in a field stands for, as `--set key=text` would; empty takes an optional key out."""
    written = text.strip()
    if not written and field.is_optional:
        return Override(field.name, None, WHERE)
    return Override(field.name, parse_value(written), WHERE, written)


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable() and safe_text(char) == char:
        return char
    if char in "\n\t\r":
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}[char]
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
