"""Whatever is written in a preset or a flag: a config or one line, and quickly."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.config.keys import known_keys, sections
from gpuworkbench.config.loader import build, parse_set
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml, parse_toml
from gpuworkbench.errors import ConfigError
from gpuworkbench.text import safe_text

QUICKSTART = load_preset("quickstart")
SHIPPED = QUICKSTART.text.decode()
KEYS = sorted(known_keys())
FUZZ = settings(max_examples=150, deadline=None)

SCALARS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.text(max_size=20),
    st.dates(),
    st.sampled_from([0, -1, 1, 2, "auto", "cpu", "cuda", "gpt2", "bf16", 1e308, 5e-324, 2**31]),
)
VALUES = st.recursive(
    SCALARS,
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(max_size=5), child, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*sections(), "cpu_twin", "description", "x", ""])
TABLES = st.dictionaries(
    NAMES,
    st.dictionaries(st.sampled_from([key.partition(".")[2] for key in KEYS]) | st.text(max_size=6), VALUES, max_size=4)
    | VALUES,
    max_size=5,
)


def config_or_line(make: Callable[[], RunConfig]) -> RunConfig | None:
    """The config; None where one printable line refused it."""
    started = time.monotonic()
    try:
        return make()
    except ConfigError as error:
        line = error.line()
    finally:
        assert time.monotonic() - started < 1.0
    assert safe_text(line) == line
    return None


def survives(config: RunConfig | None) -> None:
    """A config that was accepted can be stored and read back."""
    if config is not None:
        assert build(parse_toml(dump_toml(config), "run.toml"), "run.toml") == config


@FUZZ
@given(st.text(max_size=400) | st.text("abc.[]{}=\"'\n#-_ 0123456789\\+", max_size=400))
def test_any_text_as_a_preset(text: str) -> None:
    survives(config_or_line(lambda: build(parse_toml(text.encode("utf-8", "surrogatepass"), "a.toml"), "a.toml")))


@FUZZ
@given(st.data())
def test_a_good_preset_with_a_piece_replaced(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(SHIPPED)))
    end = data.draw(st.integers(start, min(start + 40, len(SHIPPED))))
    piece = data.draw(
        st.sampled_from(["", "nan", "-1", "[", "]", "=", '"', "\n", "9" * 30, "a.b", "{}", "\x1b"])
        | st.text(max_size=8)
    )
    text = SHIPPED[:start] + piece + SHIPPED[end:]
    survives(config_or_line(lambda: build(parse_toml(text.encode("utf-8", "surrogatepass"), "a.toml"), "a.toml")))


@FUZZ
@given(TABLES)
def test_any_table_of_sections(table: dict[str, Any]) -> None:
    base = {"schema_version": 1, "model": {"family": "gpt2"}, "train": {"max_steps": 1}}
    survives(config_or_line(lambda: build({**base, **table}, "a.toml")))


@FUZZ
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_at_any_key(key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    text = tomli_w.dumps({"value": value}).partition("=")[2].strip() if not isinstance(value, dict) else str(value)
    survives(config_or_line(lambda: configure(QUICKSTART, sets=[parse_set(f"{section}.{name}={text}")])))


@FUZZ
@given(
    st.lists(st.text(max_size=30) | st.tuples(st.sampled_from(KEYS), st.text(max_size=30)).map("=".join), max_size=3)
)
def test_any_flags(texts: list[str]) -> None:
    survives(config_or_line(lambda: configure(QUICKSTART, sets=[parse_set(text) for text in texts])))


@FUZZ
@given(st.dictionaries(st.text(max_size=12).map("GPUWORKBENCH__".__add__), st.text(max_size=20), max_size=2))
def test_any_environment(environ: dict[str, str]) -> None:
    survives(config_or_line(lambda: configure(QUICKSTART, environ=environ)))
