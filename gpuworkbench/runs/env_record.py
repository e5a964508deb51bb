"""env.json: with what each attempt ran (versions, card, driver, CPU, threads), one record an attempt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gpuworkbench.io import REAL_FILES, Files, atomic_write_json
from gpuworkbench.io.reading import read_regular_file
from gpuworkbench.runs.paths import RunPaths

MAX_ENV_BYTES = 4 * 1024 * 1024


def read_env(paths: RunPaths) -> list[dict[str, Any]]:
    """The records, oldest attempt first; empty where the file is missing or malformed."""
    try:
        return msgspec.json.decode(read_regular_file(paths.env, MAX_ENV_BYTES), type=list[dict[str, Any]])
    except (OSError, ValueError, RecursionError):
        return []


def append_env(paths: RunPaths, attempt: int, record: Mapping[str, Any], files: Files = REAL_FILES) -> None:
    """Add this attempt's record. A malformed file is kept aside as env.json.damaged. Raises OSError."""
    records = read_env(paths)
    if not records and paths.env.exists():
        files.rename(paths.env, paths.env.with_name("env.json.damaged"))
    atomic_write_json(paths.env, [*records, {"attempt": attempt, **record}], files)
