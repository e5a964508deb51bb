"""Lines and events: round trips, non-finite numbers, and bytes that nobody should have written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.events import schema
from gpuworkbench.events.codec import decode_line, decode_lines, encode, event_lines
from tests.fixtures.event_logs import LogBuilder, random_history

ENVELOPE = {"v": 1, "seq": 0, "time_unix_s": 1.0, "mono_s": 2.0, "attempt": 1, "step": 3}


def test_every_type_survives_a_round_trip() -> None:
    events = random_history(seed=1, n=4000)
    assert {type(event) for event in events} == set(schema.EVENT_TYPES.values())
    lines = [encode(event) for event in events]
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines)
    assert [decode_line(line) for line in lines] == events
    assert decode_lines(b"".join(lines)) == events


def test_a_line_is_json_with_the_type_and_the_envelope() -> None:
    event = LogBuilder().eval(7, 2.5).events[0]
    assert json.loads(encode(event)) == {
        "type": "eval",
        "v": 1,
        "seq": 0,
        "time_unix_s": 1_700_000_100.0,
        "mono_s": 100.0,
        "attempt": 1,
        "step": 7,
        "split": "val",
        "loss": 2.5,
        "perplexity": math.exp(2.5),
        "tokens": 8192,
        "duration_s": 2.0,
        "is_best": False,
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_numbers_are_null_and_named(value: float) -> None:
    event = LogBuilder().step(1, loss=None, grad_norm=value, lr=value).events[0]
    line = json.loads(encode(event))
    assert line["grad_norm"] is None
    assert line["lr"] is None
    assert line["nonfinite"] == ["grad_norm", "lr"]
    decoded = decode_line(encode(event))
    assert isinstance(decoded, schema.Step)
    assert decoded.grad_norm is None
    assert decoded.nonfinite == ("grad_norm", "lr")


def test_nonfinite_numbers_inside_a_config_value_are_named_by_the_field() -> None:
    event = schema.ConfigChanged(**ENVELOPE, key="a", old={"betas": [0.9, math.nan]}, new=1)
    line = json.loads(encode(event))
    assert line["old"] == {"betas": [0.9, None]}
    assert line["nonfinite"] == ["old"]
    assert b"nonfinite" not in encode(schema.ConfigChanged(**ENVELOPE, key="a", old=[1.0], new={"b": None}))


def test_values_that_json_cannot_hold_become_text_or_numbers() -> None:
    cyclic: list[object] = []
    cyclic.append(cyclic)
    for old in (Path("/tmp/x"), np.float32(0.5), "\ud800", {"k": "\udfff"}, cyclic, object()):
        event = schema.ConfigChanged(**ENVELOPE, key="\ud800", old=old, new=None)
        assert isinstance(decode_line(encode(event)), schema.ConfigChanged)
    event = schema.ConfigChanged(**ENVELOPE, key="k", old=Path("/tmp/x"), new=np.float32(0.5))
    decoded = decode_line(encode(event))
    assert isinstance(decoded, schema.ConfigChanged)
    assert (decoded.old, decoded.new) == ("/tmp/x", 0.5)


def test_a_newer_version_or_an_unknown_type_is_skipped_and_unknown_fields_are_not() -> None:
    paused = ENVELOPE | {"type": "paused"}
    lines = [paused | {"v": 2}, paused | {"v": 0}, paused | {"type": "teleported"}, paused | {"mood": [1]}]
    encoded = [json.dumps(line).encode() for line in lines]
    assert [decode_line(line) is not None for line in encoded] == [False, False, False, True]
    assert decode_lines(b"\n".join(encoded) + b"\n") == [schema.Paused(**ENVELOPE)]
    # A newer version's lines are still events of the run: --json passes them on.
    assert event_lines(b"\n".join(encoded) + b"\n") == b"\n".join(encoded) + b"\n"


HOSTILE = [
    b"",
    b"\n",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe",
    b"\x00" * 50,
    b"NaN",
    b'{"type":"paused"}',
    b'{"type":["paused"]}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"type":"config_changed","v":1,"seq":0,"key":"k","new":0,"old":' + b"[" * 100_000,
    json.dumps(ENVELOPE | {"type": "paused", "step": -1}).encode(),
    json.dumps(ENVELOPE | {"type": "paused", "step": 2**64}).encode(),
    json.dumps(ENVELOPE | {"type": "paused", "seq": 10**400}).encode(),
    json.dumps(ENVELOPE | {"type": "paused"}).replace("1.0", "1e999").encode(),
    json.dumps(ENVELOPE | {"type": "paused"}).encode()[:-1],
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_lines_are_none_and_do_not_take_their_neighbours_along(line: bytes) -> None:
    assert decode_line(line) is None
    good = encode(schema.Paused(**ENVELOPE))
    assert decode_lines(good + line + b"\n" + good) == [schema.Paused(**ENVELOPE)] * 2
    kept = event_lines(good + line + b"\n" + good)
    assert kept.startswith(good)
    assert kept.endswith(good)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_decode_to_none_or_an_event(data: bytes) -> None:
    decode_line(data)
    decode_lines(data)
    event_lines(data)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_a_damaged_line_never_raises(position: int, junk: bytes) -> None:
    line = encode(LogBuilder().step(5).events[0])
    at = position % len(line)
    damaged = line[:at] + junk + line[at + len(junk) :]
    for event in decode_lines(damaged):
        assert msgspec.structs.asdict(event)["seq"] >= 0
