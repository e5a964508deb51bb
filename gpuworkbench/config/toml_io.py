"""Reading and writing TOML that a person may have written: bounded, strict, one-line errors."""

from __future__ import annotations

import math
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from gpuworkbench.errors import ConfigError

MAX_CONFIG_BYTES = 1024 * 1024


def read_regular_file(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> bytes:
    """The content of a small regular file; never blocks on a FIFO or a device. Raises ConfigError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}", "check the path and its permissions") from None
    with os.fdopen(fd, "rb") as stream:
        info = os.fstat(stream.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise ConfigError(f"{path}: is not a regular file", "name a .toml file")
        if info.st_size > max_bytes:
            raise ConfigError(f"{path}: has {info.st_size} bytes, more than {max_bytes}", "is it the right file?")
        return stream.read(max_bytes + 1)


def parse_toml(data: bytes, where: str) -> dict[str, Any]:
    """Parse TOML bytes; ConfigError says where it breaks. Non-finite numbers are refused."""
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 at byte {error.start}", "save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}", "mend that line") from None
    except (RecursionError, ValueError):
        # tomllib recurses on nested arrays, and int() refuses numbers of more than 4,300 digits.
        raise ConfigError(f"{where}: nested too deeply or a number too long", "flatten the file") from None
    refuse_nonfinite(table, where)
    return table


def refuse_nonfinite(value: Any, where: str, key: str = "") -> None:
    """ConfigError when any number in `value` is NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {key} = {value} is not a finite number", "give a finite number")
    if isinstance(value, Mapping):
        for name, child in value.items():
            refuse_nonfinite(child, where, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for child in value:
            refuse_nonfinite(child, where, key)


def parse_value(text: str) -> Any:
    """The value part of `--set key=value`: TOML where it parses as one, else the string itself."""
    try:
        value = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return text
    # `1\nother = 2` would smuggle in a second key; such text is a plain string.
    return value["value"] if set(value) == {"value"} else text


def dump_toml(value: msgspec.Struct | Mapping[str, Any]) -> bytes:
    """A struct or mapping as TOML; keys whose value is None are left out (TOML has no null)."""
    table = msgspec.to_builtins(value)
    return tomli_w.dumps(_without_none(table)).encode("utf-8")


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in table.items() if value is not None and value != {}}
    return {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in kept.items()}
