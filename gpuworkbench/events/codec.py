"""Events to JSON lines and back, at C speed on the way in.

Encoding never fails on a value: what JSON cannot hold becomes `null`, a name in `nonfinite`, or text. Decoding never
raises: a line that is malformed, of an unknown type or of a newer version is `None`, since a log may be torn, hostile
or written by a later release.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET

from gpuworkbench.events.schema import EVENT_VERSION, AnyEvent, Event


def plain(value: Any) -> Any:
    """A numpy or torch scalar as Python's number; anything else as it is."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", 1) == 0 else value


def _as_json(value: Any) -> Any:
    """What the encoder does not know (a path, a numpy scalar): a number where it is one, else its text."""
    number = plain(value)
    return str(value) if number is value else number


_ENCODER = msgspec.json.Encoder(enc_hook=_as_json)
_DECODER: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


class _Typed(msgspec.Struct):
    type: str
    v: int


_TYPED_DECODER = msgspec.json.Decoder(_Typed)
# RecursionError: deep nesting. UnicodeDecodeError is a ValueError, as are all of msgspec's own errors.
_DECODE_ERRORS = (msgspec.MsgspecError, RecursionError, ValueError, OverflowError)


def encode(event: Event) -> bytes:
    """One JSON line with its newline. NaN and Inf are `null` and their fields are named in `nonfinite`."""
    if event.nonfinite is UNSET:
        names = tuple(name for name in event.__struct_fields__ if holds_nonfinite(getattr(event, name)))
        if names:
            event = msgspec.structs.replace(event, nonfinite=names)
    return encode_line(event)


def encode_line(event: Event) -> bytes:
    """`encode` for an event whose `nonfinite` is already right (NaN and Inf still become `null`)."""
    try:
        return _ENCODER.encode(event) + b"\n"
    except (UnicodeEncodeError, RecursionError, OverflowError, ValueError, TypeError):
        return _ENCODER.encode(_printable(event)) + b"\n"


def holds_nonfinite(value: Any) -> bool:
    """Whether `value` is NaN or Inf, or a container (as in `old` and `new` of config_changed) that holds one."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return _any_nonfinite(value.values())
    return isinstance(value, (list, tuple, set, frozenset)) and _any_nonfinite(value)


def decode_line(line: bytes) -> AnyEvent | None:
    """The event on `line`, or `None` for what this version cannot read. Never raises on bytes."""
    try:
        event = _DECODER.decode(line)
    except _DECODE_ERRORS:
        return None
    return event if 1 <= event.v <= EVENT_VERSION else None


def decode_lines(lines: bytes) -> list[AnyEvent]:
    """The events of many complete lines, in order; what cannot be read is left out."""
    try:
        events = _DECODER.decode_lines(lines)
    except _DECODE_ERRORS:
        return [event for line in lines.split(b"\n") if line and (event := decode_line(line)) is not None]
    if all([event.v == EVENT_VERSION for event in events]):
        return events
    return [event for event in events if 1 <= event.v <= EVENT_VERSION]


def event_lines(lines: bytes) -> bytes:
    """The lines that hold an event of any type and version, as they are: without torn, blank and foreign ones."""
    try:
        if len(_TYPED_DECODER.decode_lines(lines)) == lines.count(b"\n"):
            return lines
    except _DECODE_ERRORS:
        pass
    return b"".join(line + b"\n" for line in lines.split(b"\n") if _is_event_line(line))


def _is_event_line(line: bytes) -> bool:
    try:
        _TYPED_DECODER.decode(line)
    except _DECODE_ERRORS:
        return False
    return True


def _any_nonfinite(values: Iterable[Any]) -> bool:
    try:
        return any(holds_nonfinite(value) for value in values)
    except RecursionError:
        return False


def _printable(event: Event) -> Event:
    """The same event with lone surrogates escaped and what JSON cannot hold as text."""
    fixed = {name: _printable_value(getattr(event, name)) for name in event.__struct_fields__}
    return msgspec.structs.replace(event, **fixed)


def _printable_value(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if value is None or value is UNSET or isinstance(value, (bool, int, float)):
        return value
    try:
        _ENCODER.encode(value)
    except Exception:  # noqa: BLE001 - whatever a foreign object's encoding raises, its text is written instead
        return ascii(value)[:1000]
    return value
