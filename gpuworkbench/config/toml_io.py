"""Reading and writing TOML that anybody may have written: bounded in size, depth and time, with one-line errors."""

from __future__ import annotations

import errno
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from gpuworkbench.errors import ConfigError
from gpuworkbench.io.reading import read_regular_file

MAX_CONFIG_BYTES = 256 * 1024
MAX_DEPTH = 16  # sections in a config are three deep
MIN_INT, MAX_INT = -(2**63), 2**63 - 1  # TOML 1.0: integers are 64 bit

# tomllib's time grows with the cube of a dotted key's parts: 128 KiB of `a.a.a` take a minute and a half. Quoted
# parts are looked at up to a length only, so that this test itself stays linear.
_PART = r"""(?:[\w-]++|"(?:[^"\\\n]|\\.){0,100}+"|'[^'\n]{0,100}+')"""
_LONG_DOTTED_KEY = re.compile(rf"(?<![\w-])(?:{_PART}[ \t]*+\.[ \t]*+){{{2 * MAX_DEPTH}}}")


def read_config_file(path: Path, *, follow_symlinks: bool = False) -> bytes:
    """The content of a small regular file; never blocks on a FIFO or a device. Raises ConfigError."""
    try:
        return read_regular_file(path, MAX_CONFIG_BYTES, follow_symlinks=follow_symlinks)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            raise ConfigError(f"{path}: {error.strerror}", "is it the right file?") from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}", "name a .toml file that you may read") from None


def load_table(text: str) -> dict[str, Any]:
    """Parse TOML in bounded time. Raises ValueError (TOMLDecodeError is one) for whatever is wrong with it."""
    if _LONG_DOTTED_KEY.search(text):
        raise ValueError(f"a dotted name of more than {2 * MAX_DEPTH} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_toml(data: bytes, where: str) -> dict[str, Any]:
    """Parse TOML bytes; ConfigError says where it breaks. See `refuse_odd_values` for what else is refused."""
    try:
        table = load_table(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 at byte {error.start}", "save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}", "mend that line") from None
    except ValueError as error:
        # Also int()'s own: numbers of more than 4,300 digits.
        raise ConfigError(f"{where}: not valid TOML: {error}", "flatten or shorten it") from None
    refuse_odd_values(table, where)
    return table


def refuse_odd_values(value: Any, where: str, key: str = "") -> None:
    """ConfigError for NaN, infinity, an integer beyond 64 bits, or tables nested deeper than any config's.

    Not recursive: dotted keys nest deeper than the interpreter's stack.
    """
    pending = [(value, key, 0)]
    while pending:
        child, name, depth = pending.pop()
        if isinstance(child, float) and not math.isfinite(child):
            raise ConfigError(f"{where}: {name} = {child} is not a finite number", "give a finite number")
        if isinstance(child, int) and not MIN_INT <= child <= MAX_INT:
            raise ConfigError(f"{where}: {name} is beyond 64 bits", "give a smaller number")
        if isinstance(child, (Mapping, list)) and depth >= MAX_DEPTH:
            raise ConfigError(f"{where}: {name[:80]} is nested too deeply", "write [section] and key = value")
        if isinstance(child, Mapping):
            pending += [(item, f"{name}.{label}" if name else str(label), depth + 1) for label, item in child.items()]
        elif isinstance(child, list):
            pending += [(item, name, depth + 1) for item in child]


def parse_value(text: str) -> Any:
    """The value part of `--set key=value`: TOML where it parses as one, else the string itself."""
    try:
        value = load_table(f"value = {text}")
    except ValueError:
        return text
    # `1\nother = 2` would smuggle in a second key; such text is a plain string.
    return value["value"] if set(value) == {"value"} else text


def dump_toml(value: msgspec.Struct | Mapping[str, Any]) -> bytes:
    """A struct or mapping as TOML; keys whose value is None are left out (TOML has no null).

    Raises ConfigError for text that UTF-8 cannot hold (a file name of other bytes).
    """
    table = msgspec.to_builtins(value)
    try:
        return tomli_w.dumps(_without_none(table)).encode("utf-8")
    except UnicodeEncodeError as error:
        shown = error.object[max(error.start - 40, 0) : error.end + 40]
        raise ConfigError(f"{shown!r} is not UTF-8", "rename that file or folder") from None


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in table.items() if value is not None and value != {}}
    return {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in kept.items()}
